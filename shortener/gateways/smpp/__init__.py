"""This package implements gateways with the protocol SMPP 3.4 (kind `smpp`): settings, text encoding, PDUs, sessions and
receipts."""
