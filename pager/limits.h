/* SPDX-License-Identifier: MIT */
/* Every quantity that the pager takes from outside, or that bounds a wait, by name. */
#pragma once

#define PAGER_PAGE 4096ull
#define PAGER_HUGE_PAGE (2ull << 20) /* of a VMM in copy mode whose memory is hugetlbfs */

#define PAGER_MAX_WORKERS 16u
#define PAGER_MAX_FILLERS 1u       /* background threads: one keeps the disk and one core busy */
#define PAGER_MAX_RECLAIMERS 1u    /* threads that punch pages out */
#define PAGER_SMALL_PAGES 16384u   /* 64 MiB: an image with more present is freed by a thread of its own */
#define PAGER_STATUS_SESSIONS 256u /* with more, status leaves the buckets of their histograms out */
#define PAGER_MAX_SESSIONS 4096u
#define PAGER_MAX_IMAGES 1024u          /* open at once, idle ones included */
#define PAGER_MAX_OWNERS 64u            /* images that the pages of one image are in, itself included */
#define PAGER_MAX_EXTENTS 512u          /* of one image: each is a mapping of each of its VMMs */
#define PAGER_MAX_COMPARED 1024u        /* regions whose index nodes are compared with the base's when an image is opened */
#define PAGER_MIN_SHARED 8u             /* pages: a shorter run is not worth a mapping */
#define PAGER_MAX_CONNECTIONS 64u       /* to the control socket */
#define PAGER_MAX_CONN_QUEUE (4u << 20) /* notifications that a connection does not read; then it is closed */

/* Descriptors: kept free for connections and what comes with calls; and what each has at the most. */
#define PAGER_SPARE_FDS 128u
#define PAGER_FDS_OF_SESSION 3u /* its socket and userfaultfd; until it is attached a pidfd, a working set */
#define PAGER_FDS_OF_IMAGE 4u   /* its file, its memory twice, a userfaultfd */

#define PAGER_MAX_REGIONS 1024u                  /* in one handshake */
#define PAGER_MAX_PIECES (4 * PAGER_MAX_REGIONS) /* of a layout whose VMM moves its memory */
#define PAGER_MAX_STUCK 32u                      /* huge pages "there already" in a row: none are left */
#define PAGER_MAX_HANDSHAKE (256u << 10)         /* bytes of its JSON */
#define PAGER_MAX_HANDSHAKE_DEPTH 4u
#define PAGER_RECORD_SECONDS 10u    /* from the attachment on: what a guest first needs after a restore */
#define PAGER_HANDSHAKE_SECONDS 30u /* from session.open to the whole handshake */

/* Priority of the fault workers, where we may set it: whoever they serve waits, and what they do is short. A worker
 * that loses its core in the middle of an answer makes its guest, and whoever needs the same frame, wait for
 * another guest's time slice. */
#define PAGER_WORKER_NICE (-10)

#define PAGER_EVENT_BATCH 32u    /* messages in one read of a userfaultfd */
#define PAGER_MAX_READS 64u      /* of a session's userfaultfd before others get their turn */
#define PAGER_TURN_US 1000u      /* and so long: events about large ranges take their time */
#define PAGER_MAX_PENDING 128u   /* faults of one session that are read but not answered */
#define PAGER_QUANTUM 8u         /* answers to one session before others get their turn */
#define PAGER_RETRY_ROUNDS 16u   /* tries while a VMM changes its layout, before it is left for a while */
#define PAGER_AHEAD_UNIT 32u     /* pages that are decoded or mapped ahead at a time */
#define PAGER_MAX_WRITE_SPAN 64u /* pages that are unprotected at once for a VMM that writes one behind the other */
#define PAGER_ZERO_WINDOW 256u   /* pages, aligned: zero pages in it are mapped when one of them is asked for, */
#define PAGER_ZERO_RUNS 16u      /* at most so many runs of them */

/* A session whose process changes its layout is asked again after this long, doubling. */
#define PAGER_RETRY_MIN_US 200u
#define PAGER_RETRY_MAX_US 20000u
#define PAGER_SETTLE_TRIES 10000u /* at least two seconds, in which a VMM does not come to the end of a discard */

#define PAGER_CHUNK_PAGES 16u            /* what is punched out of a memfd at a time; divides a region */
#define PAGER_MIN_BUDGET (4ull << 20)    /* bytes of decoded pages: less would be given back before it is used */
#define PAGER_BUDGET_FLOOR (64ull << 20) /* pressure takes no more, unless the budget is of that size itself */
#define PAGER_PRESSURE_PAUSE_MS 500u     /* between two answers to pressure: the first must have its effect */
#define PAGER_PRESSURE_CALM_SECONDS 5u   /* without pressure, before the budget grows again */

#define PAGER_AUDIT_MS 200u /* between two looks for pages in an image's memory that are not ours */

#define PAGER_FAULT_SECONDS 30u /* a fault waits no longer for a worker that hangs: then its session fails */

/* A worker that has been at one piece of work for longer gets no new session while there are others. */
#define PAGER_STUCK_MS 100u

#define PAGER_REBASE_SECONDS 10u /* a VMM's writes wait so long for its own answer at the most */

#define PAGER_MAX_REASON 240u
#define PAGER_MAX_RANGES 100000u /* in one answer of session.removed, or one request; the rest with the next */
#define PAGER_SETTLE_MS 1u       /* between two looks whether a released image is left alone by now */

/* Sessions go from one worker to another when that one would have this much less to do: looked at every so
 * often, in shares of that interval. */
#define PAGER_BALANCE_MS 100u
#define PAGER_BALANCE_SHARE 0.15
