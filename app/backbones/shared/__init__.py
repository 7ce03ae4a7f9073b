"""Modules that several families share; they load nothing themselves."""
