"""The only code that opens a connection to the upstream, for forwarding and token calls."""
