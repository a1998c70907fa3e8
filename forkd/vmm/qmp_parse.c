/* SPDX-License-Identifier: MIT */
/* One line of QMP: bounded before it is parsed, sorted by its shape after. */
#include <errno.h>
#include <string.h>

#include "forkd/vmm/qmp.h"

/* The JSON library recurses; how deep is decided here, before it sees the text. What is inside strings does
 * not count. Text that is no JSON may be miscounted, which is harmless: the library refuses it. */
static bool too_deep(const char *s, size_t len) {
        bool in_string = false;
        unsigned depth = 0;

        for (size_t i = 0; i < len; i++) {
                if (in_string) {
                        if (s[i] == '\\')
                                i++;
                        else if (s[i] == '"')
                                in_string = false;
                        continue;
                }
                switch (s[i]) {
                case '"':
                        in_string = true;
                        break;
                case '{':
                case '[':
                        if (++depth > QMP_MAX_DEPTH)
                                return true;
                        break;
                case '}':
                case ']':
                        if (depth > 0)
                                depth--;
                        break;
                default:
                        break;
                }
        }
        return false;
}

/* Ids are ours and always positive integers; an answer with another one answers nothing we asked. */
static int get_id(const json_t *root, struct qmp_msg *m) {
        const json_t *id = json_object_get(root, "id");

        if (!id)
                return 0;
        if (!json_is_integer(id) || json_integer_value(id) <= 0)
                return -EBADMSG;
        m->has_id = true;
        m->id = (uint64_t) json_integer_value(id);
        return 0;
}

static const char *classify(json_t *root, struct qmp_msg *m) {
        json_t *v;

        if (!json_is_object(root))
                return "a message that is no object";
        if (get_id(root, m) < 0)
                return "an id that was never given";
        if ((v = json_object_get(root, "return"))) {
                m->kind = QMP_RETURN;
                m->value = v;
                return NULL;
        }
        if ((v = json_object_get(root, "error"))) {
                m->kind = QMP_ERROR;
                m->desc = json_string_value(json_object_get(v, "desc"));
                return m->desc ? NULL : "an error without a description";
        }
        if ((v = json_object_get(root, "event"))) {
                m->kind = QMP_EVENT;
                m->event = json_string_value(v);
                m->value = json_object_get(root, "data");
                if (m->value && !json_is_object(m->value))
                        return "an event whose data is no object";
                return m->event ? NULL : "an event without a name";
        }
        if (json_is_object(json_object_get(root, "QMP"))) {
                m->kind = QMP_GREETING;
                return NULL;
        }
        return "a message of no known kind";
}

int qmp_parse(const char *line, size_t len, struct qmp_msg *ret, const char **ret_why) {
        cleanup_json json_t *root = NULL;
        struct qmp_msg m = { 0 };
        const char *why;
        json_error_t je;

        if (len > QMP_MAX_LINE)
                why = "a line that is too long";
        else if (too_deep(line, len))
                why = "a message that nests too deep";
        else if (!(root = json_loadb(line, len, 0, &je)))
                why = "a line that is no JSON";
        else
                why = classify(root, &m);
        if (why) {
                *ret_why = why;
                return -EBADMSG;
        }
        m.root = TAKE_PTR(root);
        *ret = m;
        return 0;
}

void qmp_msg_clear(struct qmp_msg *m) {
        json_decref(m->root);
        *m = (struct qmp_msg){ 0 };
}

char *qmp_printable(const char *s, size_t len, char *buf, size_t size) {
        size_t n = MIN_OF(len, size - 1);

        for (size_t i = 0; i < n; i++) {
                unsigned char c = (unsigned char) s[i];

                /* bytes of UTF-8 pass: paths have them */
                buf[i] = c < 0x20 || c == 0x7f ? (c == '\n' || c == '\t' ? ' ' : '?') : s[i];
        }
        buf[n] = '\0';
        return buf;
}
