# SPDX-License-Identifier: LGPL-2.1-or-later
"""A virtual machine with Debian's kernel and its DRBD, for tests/vm/test_vm.py.

`packages` fetches what goes into it, `image` makes an initramfs of that,
`qemu` boots it and hands back what `init.sh`, which runs inside, wrote down.
"""
