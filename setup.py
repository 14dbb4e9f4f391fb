# SPDX-License-Identifier: LGPL-2.1-or-later
"""What pyproject.toml cannot say: how the extension `remus_native._core` is built."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

# A library as pkg-config asks for it, and the Debian package that has it.
LIBRARIES = {"fuse3 >= 3.10": "libfuse3-dev", "gnutls >= 3.7": "libgnutls28-dev"}
# Warnings are errors only where we ask for it: a newer compiler that warns of
# something new must not break an installation.
FLAGS = dict(re.findall(r"^(\w+) = (.*)$", Path("csrc/flags.mk").read_text(), re.M))
STRICT = [*FLAGS["WARNINGS"].split(), "-Werror"]
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")


def missing():
    """What the build needs and this machine lacks, one message, or None."""
    cc = shlex.split(os.environ.get("CC", ""))[:1] or ["gcc", "cc"]
    if not any(map(shutil.which, cc)):
        return f"a C compiler ({' or '.join(cc)}) is missing: apt-get install gcc"
    pkg_config = os.environ.get("PKG_CONFIG", "pkg-config")
    if not shutil.which(pkg_config):
        return f"{pkg_config} is missing: apt-get install pkg-config"
    for library, package in LIBRARIES.items():
        if subprocess.run([pkg_config, "--exists", library], check=False).returncode:
            return f"the library {library} is missing: apt-get install {package}"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's C headers are missing: apt-get install python3-dev"
    return None


class BuildExt(build_ext):
    """Compiles csrc/ apart from the code that cffi generates.

    Only ours is held to our warnings.
    """

    def build_extension(self, ext):
        strict = STRICT if os.environ.get("REMUS_WERROR") == "1" else []
        ours = [source for source in ext.sources if source.startswith("csrc/")]
        ext.sources = [source for source in ext.sources if source not in ours]
        ext.extra_objects += self.compiler.compile(
            ours,
            output_dir=self.build_temp,
            debug=self.debug,
            extra_postargs=[*ext.extra_compile_args, *strict],
            depends=ext.depends,
        )
        super().build_extension(ext)


lacking = missing()
if lacking:
    sys.exit(f"remus-native: {lacking}")

setup(
    cffi_modules=["remus_native/_build.py:ffibuilder"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if ABI3 else {},
)
