# Made from cloud_sandbox/_async/__init__.py by `make sdk`; do not edit.
"""The asynchronous face, from which the blocking one is made."""
