"""Gateways that speak SMPP 3.4 (kind `smpp`): settings, encoding, PDUs, session, receipts and the connection of a process."""
