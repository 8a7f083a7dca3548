"""The contracts' messages and stubs, generated: see `make sdk`."""
