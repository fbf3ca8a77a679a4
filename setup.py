# SPDX-License-Identifier: Apache-2.0
"""The two C extensions; everything else stands in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["agent/core/build.py:ffi", "exporters/build.py:ffi"])
