"""Who is calling, and the login that callers believe to be Nomba's."""
