from hypothesis import settings

# A deadline would be an assertion on the wall clock, and fail on a busy machine.
settings.register_profile("proxy", deadline=None)
settings.load_profile("proxy")
