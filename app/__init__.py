"""The door and the ledger."""

__version__ = "0.1.0"
