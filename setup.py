"""Builds the compiled code of the method; all else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "app.method._conv_crf",
            ["app/method/conv_crf.cpp"],
            extra_compile_args=["-std=c++20", "-O3", "-g0", "-Wno-psabi", "-pthread"],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,  # without a compiler or Python's headers torch computes the same
        )
    ]
)
