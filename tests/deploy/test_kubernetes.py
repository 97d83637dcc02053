"""The manifests: what the cluster checks, what the proxy needs, and what an intruder must not find."""

import asyncio
import ssl

import aiohttp
import kubernetes_validate
import pytest
import trustme
import yaml
from deploying import CALLER_KEY, DEPLOY, given_files, secrets_of

from proxy.settings import load

FILES = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
DOCUMENTS = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]
DEPLOYMENTS = {one["metadata"]["name"]: one for one in DOCUMENTS if one["kind"] == "Deployment"}
OURS = {"app": "sidecar", "nomba-proxy": "gateway"}
DOC = (DEPLOY.parents[1] / "docs/deployment.md").read_text()


def name_of(one):
    return f"{one['kind']}-{one['metadata']['name']}"


def pod(name):
    return DEPLOYMENTS[name]["spec"]["template"]["spec"]


def containers(spec):
    return [*spec.get("initContainers", []), *spec["containers"]]


def proxy_in(name):
    [one] = [one for one in containers(pod(name)) if one["name"] == "nomba-proxy"]
    return one


def env_of(name):
    return {one["name"]: one["value"] for one in proxy_in(name)["env"]}


def size(text):
    """Bytes of a quantity."""
    return int(text[:-2]) * {"Mi": 2**20, "Gi": 2**30}[text[-2:]]


@pytest.fixture
def contents(simulator):
    return secrets_of(simulator, trustme.CA(), password="a-password")


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_schema_knows_every_field(document, version):
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_gives_an_intruder_little(name):
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 10_000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in containers(spec):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= set(one["resources"]["requests"])
        assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize("name", OURS)
def test_secrets_come_as_files_that_others_cannot_read(name):
    env = env_of(name)
    secret = [one for one in env if one.endswith(("_SECRET", "_ID", "_PASSWORD", "_TOKEN", "_KEY"))]
    assert secret == []
    volumes = {one["name"]: one for one in pod(name)["volumes"]}
    mounted = {one["mountPath"]: one for one in proxy_in(name)["volumeMounts"]}
    files = [value for key, value in env.items() if key.endswith("_FILE")]
    assert {"NOMBA_CLIENT_ID_FILE", "NOMBA_CLIENT_SECRET_FILE", "NOMBA_ACCOUNT_ID_FILE"} <= set(env)
    for path in files:
        folder, _, file = path.rpartition("/")
        assert mounted[folder]["readOnly"] is True
        volume = volumes[mounted[folder]["name"]]["secret"]
        assert volume["defaultMode"] == 0o440  # and the group is fsGroup
        assert volume["secretName"] in DOC
        assert file in DOC, "the manual tells how to make it"


@pytest.mark.parametrize("name", OURS)
def test_what_is_written_is_written_to_volumes_with_room(name):
    settings = load(environ={}, credentials=False).model
    volumes = {one["name"]: one for one in pod(name)["volumes"]}
    mounted = {one["mountPath"]: one["name"] for one in proxy_in(name)["volumeMounts"]}
    assert "emptyDir" in volumes[mounted["/var/lib/nomba-proxy"]]
    spool = volumes[mounted["/tmp"]]["emptyDir"]
    assert spool.get("medium") is None  # memory would count against the limit
    assert size(spool["sizeLimit"]) > settings.body.spool_budget
    limit = size(proxy_in(name)["resources"]["limits"]["memory"])
    assert limit >= settings.body.memory_budget + 128 * 2**20


@pytest.mark.parametrize("name", OURS)
def test_the_settings_are_good_and_the_end_has_time(name, tmp_path, contents):
    env = given_files(env_of(name), tmp_path, contents)
    state = {"NOMBA_PROXY_STATE_DIR": str(tmp_path / "state")}  # which the image sets
    settings = load(environ={**env, **state})
    assert settings.warnings == ()
    drain = settings.model.drain
    assert pod(name)["terminationGracePeriodSeconds"] > drain.delay + drain.limit + 5
    # Ready is asked for often enough that the Service has heard before the delay is over.
    probe = proxy_in(name)["readinessProbe"]
    if drain.delay:
        assert (
            probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
            < drain.delay
        )


@pytest.mark.parametrize("name", OURS)
def test_a_session_in_memory_has_one_pod_at_any_time(name):
    spec = DEPLOYMENTS[name]["spec"]
    if env_of(name).get("NOMBA_PROXY_STORE", "memory") == "memory":
        assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    else:
        assert spec["replicas"] > 1
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_sidecar_is_up_before_the_app_and_ends_after_it():
    [one] = pod("app")["initContainers"]
    assert (one["name"], one["restartPolicy"]) == ("nomba-proxy", "Always")
    assert one["startupProbe"]["httpGet"]["path"] == "/livez"


def selected(selector, name):
    labels = DEPLOYMENTS[name]["spec"]["template"]["metadata"]["labels"]
    return selector.items() <= labels.items()


def test_a_drain_of_nodes_leaves_a_replica():
    [budget] = [one for one in DOCUMENTS if one["kind"] == "PodDisruptionBudget"]
    assert selected(budget["spec"]["selector"]["matchLabels"], "nomba-proxy")
    assert budget["spec"]["maxUnavailable"] < DEPLOYMENTS["nomba-proxy"]["spec"]["replicas"]


@pytest.mark.parametrize("name", [*OURS, "valkey"])
def test_the_network_lets_few_in(name):
    [policy] = [
        one["spec"]
        for one in DOCUMENTS
        if one["kind"] == "NetworkPolicy"
        and selected(one["spec"]["podSelector"]["matchLabels"], name)
    ]
    assert "Ingress" in policy["policyTypes"]
    ports = {one["containerPort"] for every in containers(pod(name)) for one in every["ports"]}
    for rule in policy["ingress"]:
        opened = {one["port"] for one in rule["ports"]}
        assert opened <= ports
        if 9091 in opened:
            [who] = rule["from"]
            assert who["namespaceSelector"]["matchLabels"] == {
                "kubernetes.io/metadata.name": "monitoring"
            }


async def test_probes_from_outside_are_answered_and_nothing_else_is(
    start_proxy, simulator, valkey, contents, tmp_path
):
    for name in OURS:
        folder = tmp_path / name
        folder.mkdir()
        env = {
            **dict.fromkeys(("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID")),
            **given_files(env_of(name), folder, contents),
            "NOMBA_PROXY_ADMIN_LISTEN": "0.0.0.0:0",
            "NOMBA_ENVIRONMENT": None,  # it is the simulator
        }
        env["NOMBA_PROXY_LISTEN"] = (
            env.get("NOMBA_PROXY_LISTEN", "127.0.0.1:8080").rpartition(":")[0] + ":0"
        )
        if name == "nomba-proxy":
            env["NOMBA_PROXY_STORE"] = valkey.url
            env |= dict.fromkeys(("NOMBA_PROXY_STORE_PASSWORD_FILE",))
        proxy = await start_proxy(env=env)
        port = proxy.running.admin_listener.at.port
        pod_address = {"Host": "10.20.30.40:9091"}
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as kubelet:
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                path = proxy_in(name)[probe]["httpGet"]["path"]
                for _ in range(100):  # ready comes with the first token
                    async with kubelet.get(path, headers=pod_address) as reply:
                        if reply.status == 200:
                            break
                    await asyncio.sleep(0.05)
                else:
                    raise AssertionError(path)
            statuses = {}
            for path in ("/metrics", "/token"):
                async with kubelet.get(path, headers=pod_address) as reply:
                    statuses[path] = reply.status
            assert statuses == {"/metrics": 200, "/token": 401}


async def test_the_gateway_is_called_over_tls_with_a_key(start_proxy, simulator, valkey, tmp_path):
    authority = trustme.CA()
    contents = secrets_of(simulator, authority)
    env = given_files(env_of("nomba-proxy"), tmp_path, contents)
    env |= {"NOMBA_PROXY_LISTEN": "https://0.0.0.0:0", "NOMBA_PROXY_ADMIN_LISTEN": "127.0.0.1:0"}
    env |= {"NOMBA_PROXY_STORE": valkey.url, "NOMBA_PROXY_STORE_PASSWORD_FILE": None}
    env |= dict.fromkeys(
        ("NOMBA_CLIENT_ID", "NOMBA_CLIENT_SECRET", "NOMBA_ACCOUNT_ID", "NOMBA_ENVIRONMENT")
    )
    proxy = await start_proxy(env=env)
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    url = f"https://localhost:{proxy.running.listen.port}/v1/accounts/balance"
    statuses = []
    for headers in ({}, {"X-Nomba-Proxy-Key": CALLER_KEY}):
        async with aiohttp.request("GET", url, headers=headers, ssl=tls) as reply:
            statuses.append(reply.status)
    assert statuses == [401, 200]
