# SPDX-License-Identifier: LGPL-2.1-or-later
# How every C file of ours is compiled. The Makefile, setup.py and
# remus_native/_build.py read it: there is no second list.
LANGUAGE = -std=c11 -D_GNU_SOURCE -fvisibility=hidden -pthread
WARNINGS = -Wall -Wextra -Wconversion -Wshadow
