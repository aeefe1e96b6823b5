"""This package hands messages on to gateways: the systems, such as HTTP APIs and SMPP servers, that send messages to phones."""
