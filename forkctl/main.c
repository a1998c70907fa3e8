/* SPDX-License-Identifier: MIT */
#include "forkctl/ctl.h"

int main(int argc, char **argv) {
        return ctl_main(argc, argv);
}
