"""`nomba-proxy doctor` in the process of a test, and what it said."""

from dataclasses import dataclass, field

from valkeys import free_port

from proxy.doctor.examine import Examination

BALANCE = "/v1/accounts/balance"
ISSUE = "/v1/auth/token/issue"
REFRESH = "/v1/auth/token/refresh"
REVOKE = "/v1/auth/token/revoke"


@dataclass
class Report:
    """The steps of one examination."""

    steps: list = field(default_factory=list)

    def __getitem__(self, name):
        """The one step of that name."""
        (found,) = self.all(name)
        return found

    def all(self, name):
        return [one for one in self.steps if one.name == name]

    @property
    def failed(self):
        return [one.name for one in self.steps if one.ok is False]

    @property
    def text(self):
        return "\n".join(f"{one.name}: {one.seen}\n{one.next}" for one in self.steps)


async def examined(environ, *, config=None, flags=None, upstream=None, may_issue=True):
    """Run an examination to its end."""
    report = Report()
    examination = Examination(
        environ=environ,
        config=config,
        flags=flags or {},
        tell=report.steps.append,
        upstream=upstream,
        may_issue=may_issue,
    )
    await examination.run()
    return report


def settings_of(simulator, folder):
    """The environment of a proxy in front of a simulator, on ports that nobody has."""
    switches = simulator.switches
    return {
        "NOMBA_CLIENT_ID": switches.client_id,
        "NOMBA_CLIENT_SECRET": switches.client_secret,
        "NOMBA_ACCOUNT_ID": switches.account_id,
        "NOMBA_BASE_URL": simulator.origin,
        "NOMBA_PROXY_LISTEN": f"127.0.0.1:{free_port()}",
        "NOMBA_PROXY_ADMIN_LISTEN": f"127.0.0.1:{free_port()}",
        "NOMBA_PROXY_STATE_DIR": str(folder / "state"),
    }


def places_of(proxy):
    """Where a running proxy listens, as settings."""
    return {
        "NOMBA_PROXY_LISTEN": str(proxy.running.listen),
        "NOMBA_PROXY_ADMIN_LISTEN": str(proxy.running.admin_listener),
    }
