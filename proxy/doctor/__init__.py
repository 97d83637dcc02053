"""Why it does not work: asked step by step, and judged apart from the asking.

`reading`, `local`, `network` and `session` ask; `of_settings`, `of_network`, `of_replies` and
`of_local` say what follows from what was seen, and are plain functions.
"""
