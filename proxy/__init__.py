"""An authenticating reverse proxy for the Nomba payments API.

One process holds Nomba's single session; everyone else just calls HTTP.
ARCHITECTURE.md is the map of the rooms below.
"""

__version__ = "0.1.0"
