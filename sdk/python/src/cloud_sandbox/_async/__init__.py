"""The asynchronous face, from which the blocking one is made."""
