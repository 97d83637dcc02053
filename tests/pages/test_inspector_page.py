"""The inspector's page in a real browser, in front of a real proxy and a simulated Nomba."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from playwright.async_api import expect

from proxy.inspector.looks import MASK
from proxy.simulator import parse_fault

DOCS = Path(__file__).parents[2] / "docs"
BALANCE, TRANSFER, LOOKUP = (
    "/v1/accounts/balance",
    "/v2/transfers/bank",
    "/v1/transfers/bank/lookup",
)
DUMP = "() => document.documentElement.outerHTML"

# Every piece of text that can be seen, with its contrast to what is behind it (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const parse = (text) => {
    const found = text.match(/rgba?\\(([^)]+)\\)/);
    if (!found) return null;
    const [r, g, b, a = 1] = found[1].split(/[ ,\\/]+/).map(Number);
    return { r, g, b, a };
  };
  const over = (top, under) => ({
    r: top.r * top.a + under.r * (1 - top.a), g: top.g * top.a + under.g * (1 - top.a),
    b: top.b * top.a + under.b * (1 - top.a), a: 1 });
  const light = ({ r, g, b }) => {
    const one = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    return 0.2126 * one(r) + 0.7152 * one(g) + 0.0722 * one(b);
  };
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour && colour.a > 0) layers.push(colour);
      if (colour && colour.a === 1) break;
    }
    const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? 0 : 255;
    return layers.reduceRight((under, top) => over(top, under), { r: canvas, g: canvas, b: canvas, a: 1 });
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (node.closest(":disabled, [aria-hidden=true], [inert], option")) continue;
    const under = behind(node);
    const colour = over(parse(getComputedStyle(node).color), under);
    const [a, b] = [light(colour), light(under)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.trim().slice(0, 40), node.className]);
  }
  return found;
}"""


def rows(page):
    return page.get_by_test_id("row")


async def open_row(page, number):
    await page.locator(f'[data-testid=row][data-id="{number}"]').click()
    detail = page.get_by_test_id("detail")
    await expect(detail.get_by_test_id("timeline")).to_be_visible()
    return detail


async def busy(inspector, simulator):
    """Exchanges of every kind, the fourth of them refused first and then replayed."""
    proxy = inspector.proxy
    await proxy.get(BALANCE)
    await proxy.get("/v1/transfers/banks?limit=3")
    await proxy.transfer("ref-1")
    simulator.revoke()
    await proxy.transfer("ref-2")
    simulator.inject(parse_fault("""reply status=200 body='{"code":"400","description":"No."}'"""))
    await proxy.send("POST", "/v1/checkout/order", body=b"{}")
    simulator.inject(parse_fault("""reply status=201 body='{"code":"201","data":{}}'"""))
    await proxy.transfer("ref-3")
    simulator.inject(parse_fault(f"drop-after path={TRANSFER}"))
    await proxy.transfer("ref-4")
    simulator.inject(parse_fault("reply status=403 content_type=text/html body=<html>x</html>"))
    await proxy.get("/v1/transactions/accounts")
    await inspector.rows(8)


async def test_rows_are_live_and_look_like_what_became_of_them(inspect, simulator, browse):
    inspector = await inspect()
    page = await browse(inspector.proxy.running.inspector)
    await expect(page).to_have_url(f"{inspector.base}/")  # the key is out of the address bar
    await expect(page.get_by_test_id("conn")).to_have_text("Live")
    with simulator.hold(BALANCE) as hold:
        call = asyncio.create_task(inspector.proxy.get(BALANCE))
        await hold.caught(1)
        first = page.locator('[data-testid=row][data-id="1"]')
        await expect(first).to_have_attribute("data-state", "pending")
    await call
    await expect(first).to_have_attribute("data-state", "ok")
    await busy(inspector, simulator)
    await expect(page.get_by_test_id("count")).to_have_text("9 shown")
    shown = {
        int(await row.get_attribute("data-id")): await row.get_attribute("data-state")
        for row in await rows(page).all()
    }
    states = ["ok", "ok", "ok", "ok", "ok", "failed", "in_flight", "unknown", "failed"]
    assert [shown[number] for number in sorted(shown)] == states
    assert list(shown) == sorted(shown, reverse=True)
    await expect(page.locator('[data-id="6"]')).to_contain_text("200 · 400")
    await expect(page.locator('[data-id="5"]')).to_contain_text("×2")
    await expect(page.locator('[data-id="5"]')).to_contain_text("money")
    await expect(page.locator('[data-id="8"]')).to_contain_text("unknown")


async def test_filters_pause_and_clear(inspect, simulator, browse):
    inspector = await inspect()
    await busy(inspector, simulator)
    page = await browse(inspector.proxy.running.inspector)
    count = page.get_by_test_id("count")
    for choose, number in (
        (lambda: page.get_by_test_id("filter-q").fill("ref-2"), 1),
        (lambda: page.get_by_test_id("filter-q").fill(""), 8),
        (lambda: page.get_by_test_id("filter-caller").select_option("anonymous"), 8),
        (lambda: page.get_by_test_id("filter-method").select_option("GET"), 3),
        (lambda: page.get_by_test_id("filter-method").select_option(""), 8),
        (lambda: page.get_by_test_id("filter-status").select_option("5xx"), 1),
        (lambda: page.get_by_test_id("filter-status").select_option(""), 8),
        (lambda: page.get_by_test_id("filter-family").select_option("transfers"), 5),
        (lambda: page.get_by_test_id("filter-money").check(), 4),
        (lambda: page.get_by_test_id("filter-errors").check(), 1),
        (lambda: page.get_by_test_id("filter-money").uncheck(), 1),
        (lambda: page.get_by_test_id("filter-family").select_option(""), 3),
        (lambda: page.get_by_test_id("filter-errors").uncheck(), 8),
    ):
        await choose()
        await expect(count).to_have_text(f"{number} shown")
    await page.get_by_test_id("pause").click()
    await expect(page.get_by_test_id("conn")).to_have_text("Paused")
    await inspector.proxy.get(BALANCE)
    await inspector.rows(9)
    await asyncio.sleep(0.3)
    await expect(count).to_have_text("8 shown")
    await page.get_by_test_id("pause").click()
    await expect(count).to_have_text("9 shown")
    await page.get_by_test_id("clear").click()
    await expect(count).to_have_text("0 shown")
    assert await inspector.rows() == []


async def test_the_detail_shows_both_sides_and_every_attempt(inspect, simulator, browse):
    inspector = await inspect()
    await busy(inspector, simulator)
    page = await browse(inspector.proxy.running.inspector)
    detail = await open_row(page, 4)
    timeline = detail.get_by_test_id("timeline")
    for name in ("first byte", "renewal", "body"):
        await expect(timeline.get_by_text(name).first).to_be_visible()
    await expect(detail.get_by_test_id("hints")).to_contain_text("renewed it")
    caller, sent = detail.get_by_test_id("side-caller"), detail.get_by_test_id("side-sent")
    await expect(caller.locator("[data-mark=changed]")).to_contain_text("Host")
    added = sent.locator("[data-mark=added]")
    await expect(added.filter(has_text="Authorization")).to_contain_text(MASK)
    await expect(added.filter(has_text="accountId")).to_have_count(1)
    await detail.get_by_test_id("body-raw").click()
    await expect(detail.get_by_text(f'"accountNumber": "{MASK}6789"')).to_be_visible()
    await detail.get_by_test_id("body-hex").click()
    await expect(detail.get_by_text("00000000  7b 22")).to_be_visible()
    await detail.get_by_test_id("body-tree").click()
    await expect(detail.get_by_text("merchantTxRef")).to_be_visible()
    await detail.get_by_test_id("tab-attempts").click()
    await expect(detail.get_by_text("HTTP/1.1 401 Unauthorized")).to_be_visible()
    await expect(detail.get_by_text("HTTP/1.1 200 OK")).to_be_visible()
    await detail.get_by_test_id("tab-reply").click()
    await expect(detail.get_by_text("Nomba-Proxy-Outcome")).to_be_visible()
    await detail.get_by_test_id("copy-curl").click()
    await expect(page.get_by_test_id("toast")).to_contain_text("Copied")
    text = await page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("curl ")
    assert inspector.proxy.url + TRANSFER in text
    await open_row(page, 8)
    await expect(detail.get_by_test_id("hints")).to_contain_text("allowlist")
    await open_row(page, 7)
    await expect(detail.get_by_test_id("hints")).to_contain_text("Nobody knows")


async def test_a_replay_is_compared_with_its_original(inspect, browse):
    inspector = await inspect()
    await inspector.proxy.send(
        "POST", LOOKUP, "Content-Type: application/json", body=b'{"bankCode":"058","pin":"1"}'
    )
    page = await browse(inspector.proxy.running.inspector)
    detail = await open_row(page, 1)
    await detail.get_by_test_id("replay").click()
    await expect(detail.get_by_test_id("diff")).to_contain_text("X-Request-Id")
    await expect(page.locator('[data-id="2"]')).to_contain_text("#1")
    await open_row(page, 1)
    await detail.get_by_test_id("edit-replay").click()
    dialog = page.get_by_test_id("replay-dialog")
    await expect(dialog.get_by_test_id("replay-body")).to_have_value(
        f'{{"bankCode":"058","pin":"{MASK}"}}'
    )
    await dialog.get_by_test_id("replay-body").fill(f'{{"bankCode":"044","pin":"{MASK}"}}')
    await dialog.get_by_test_id("replay-send").click()
    await expect(dialog.get_by_test_id("replay-error")).to_contain_text("mask")
    await dialog.get_by_test_id("replay-body").fill('{"bankCode":"044","pin":"2"}')
    await dialog.get_by_test_id("replay-send").click()
    await expect(detail.get_by_test_id("diff")).to_contain_text("044")
    assert len(await inspector.rows(3)) == 3


async def test_money_asks_for_its_reference(inspect, simulator, browse):
    inspector = await inspect()
    await inspector.proxy.transfer("ref-1")
    page = await browse(inspector.proxy.running.inspector)
    detail = await open_row(page, 1)
    await detail.get_by_test_id("replay").click()
    dialog = page.get_by_test_id("replay-dialog")
    await expect(dialog).to_contain_text("merchantTxRef")
    await dialog.get_by_test_id("replay-confirm").fill("ref-2")
    await dialog.get_by_test_id("replay-send").click()
    await expect(dialog.get_by_test_id("replay-error")).to_contain_text("real money")
    assert len(simulator.calls(TRANSFER)) == 1
    await dialog.get_by_test_id("replay-confirm").fill("ref-1")
    await dialog.get_by_test_id("replay-send").click()
    await expect(detail.get_by_test_id("diff")).to_contain_text("Duplicate")
    assert len(simulator.calls(TRANSFER)) == 2


async def test_everything_can_be_done_from_the_keyboard(inspect, simulator, browse):
    inspector = await inspect()
    await busy(inspector, simulator)
    page = await browse(inspector.proxy.running.inspector)
    await expect(page.get_by_test_id("count")).to_have_text("8 shown")
    press = page.keyboard.press
    for key in ("j", "j", "Enter"):
        await press(key)
    await expect(page).to_have_url(f"{inspector.base}/#/x/7")
    await press("2")
    await expect(page.get_by_test_id("tab-attempts")).to_have_attribute("aria-selected", "true")
    await press("Escape")
    await expect(page.get_by_test_id("detail")).to_be_hidden()
    await press("/")
    await page.keyboard.type("ref-3")
    await expect(page.get_by_test_id("count")).to_have_text("1 shown")
    await press("Escape")
    await press("Escape")
    await press("?")
    await expect(page.get_by_test_id("help")).to_be_visible()
    await press("Escape")
    await press("p")
    await expect(page.get_by_test_id("conn")).to_have_text("Paused")
    await press("p")
    await press("g")
    await press("s")
    await expect(page.get_by_test_id("session")).to_be_visible()
    await press("g")
    await press("l")
    await press("Shift+C")
    await expect(page.get_by_test_id("count")).to_have_text("0 shown")


async def test_sessions_are_shown_and_renewed(inspect, browse):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    page = await browse(inspector.proxy.running.inspector)
    await page.get_by_test_id("nav-sessions").click()
    session = page.get_by_test_id("session")
    await expect(session).to_have_attribute("data-name", "nomba")
    await expect(session.get_by_test_id("age-bar")).to_be_visible()
    await expect(session).to_contain_text("first token")
    await session.get_by_test_id("renew").click()
    await expect(session).to_contain_text("an operator asked for it")
    shown = (await inspector.get("/api/sessions"))["sessions"][0]
    assert shown["generation"] == 2


class Relay:
    """Stands between a browser and the inspector, and can be cut."""

    def __init__(self, base):
        host, _, port = base.removeprefix("http://").rpartition(":")
        self._to = host, int(port)
        self._writers = set()

    async def open(self, port=0):
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self):
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _pass(self, reader, writer):
        there, back = await asyncio.open_connection(*self._to)
        self._writers |= {writer, back}

        async def copy(source, target):
            try:
                while data := await source.read(65536):
                    target.write(data)
                    await target.drain()
            except ConnectionError:
                pass
            finally:
                target.close()

        await asyncio.gather(copy(reader, back), copy(there, writer))
        self._writers -= {writer, back}


async def test_a_page_that_was_cut_off_comes_back_with_all_rows_once(inspect, browse):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    relay = Relay(inspector.base)
    await relay.open()
    page = await browse(f"http://127.0.0.1:{relay.port}/?token={inspector.token}")
    conn, count = page.get_by_test_id("conn"), page.get_by_test_id("count")
    await expect(count).to_have_text("1 shown")
    relay.cut()
    await expect(conn).to_contain_text("Reconnecting")
    for number in range(20):
        await inspector.proxy.get(f"/v1/transfers/banks?n={number}")
    await relay.open(relay.port)
    await expect(conn).to_have_text("Live", timeout=20_000)
    await expect(count).to_have_text("21 shown", timeout=20_000)
    numbers = [await row.get_attribute("data-id") for row in await rows(page).all()]
    assert len(numbers) == len(set(numbers))
    relay.cut()


@pytest.mark.timeout(120)
async def test_five_thousand_rows_stay_smooth(inspect, simulator, browse):
    inspector = await inspect()
    page = await browse(inspector.proxy.running.inspector)

    async def caller(count):
        reader, writer = await asyncio.open_connection(*inspector.proxy.address)
        for _ in range(count):
            writer.write(f"GET {BALANCE} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.close()

    await asyncio.gather(*(caller(500) for _ in range(10)))
    await expect(page.get_by_test_id("count")).to_have_text("5,000 shown", timeout=30_000)
    assert await rows(page).count() < 100
    await rows(page).first.click()
    await page.keyboard.press("End")
    last = page.locator('[data-testid=row][data-id="1"]')
    await expect(last).to_be_visible()
    await inspector.proxy.get(BALANCE)  # a new row above moves nothing of what is looked at
    before = await last.bounding_box()
    await expect(page.get_by_test_id("count")).to_have_text("5,001 shown")
    assert await last.bounding_box() == before
    frames = await page.evaluate(
        """() => new Promise((done) => {
          const box = document.querySelector('[role=listbox]');
          let frames = 0;
          const step = () => { box.scrollTop = 40 * 34 * ++frames; frames < 60 ? requestAnimationFrame(step) : done(frames); };
          requestAnimationFrame(step);
        })"""
    )
    assert frames == 60
    assert await rows(page).count() < 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_it_can_be_read_everywhere(inspect, simulator, browse, scheme, width):
    inspector = await inspect()
    await busy(inspector, simulator)
    view = {"width": width, "height": 800}
    page = await browse(inspector.proxy.running.inspector, color_scheme=scheme, viewport=view)
    await expect(page.get_by_test_id("count")).to_have_text("8 shown")
    pages = {"list": None, "detail": 4, "sessions": None}
    for name, number in pages.items():
        if number is not None:
            await open_row(page, number)
        if name == "sessions":
            await page.evaluate("location.hash = '#/sessions'")
            await expect(page.get_by_test_id("session")).to_be_visible()
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        measured = await page.evaluate(CONTRAST)
        assert len(measured) > 15
        assert [one for one in measured if one[0] < 4.5] == []
        if os.environ.get("SCREENSHOTS") and (scheme, width) == ("light", 1280):
            await page.mouse.move(0, 0)
            await page.screenshot(path=DOCS / f"inspector-{name}.png")
    background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    dark = sum(map(int, background.removeprefix("rgb(").rstrip(")").split(","))) < 384
    assert dark == (scheme == "dark")


async def test_a_hostile_reply_does_nothing_to_the_page(inspect, upstream, browse):
    inspector = await inspect(base_url=upstream.origin)
    evil = "<img src=x onerror=alert(1)><script>alert(1)</script>\u202e"
    body = json.dumps({"code": evil, "description": evil, "data": {evil: [evil]}}).encode()
    head = b"HTTP/1.1 200 <script>alert(1)</script>\r\nX-<b>: y\r\nX-Evil: <script>alert(1)</script>\r\n"
    head = head.replace(b"X-<b>: y\r\n", b"") + b"Content-Type: application/json\r\n"
    upstream.answer = upstream.reply_with(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    await inspector.proxy.send("POST", "/v1/%3Cscript%3E?q=<b>", "X-E: <script>", body=body)
    page = await browse(inspector.proxy.running.inspector)
    detail = await open_row(page, 1)
    for tab in ("tab-exchange", "tab-attempts", "tab-reply"):
        await detail.get_by_test_id(tab).click()
        await expect(detail).to_contain_text("<script>alert(1)</script>")
    assert await page.locator("img[src=x], #detail script").count() == 0


async def test_no_marked_secret_is_in_any_page(inspect, browse):
    inspector = await inspect()
    secret = {"pin": "MARKED-1", "client_secret": "MARKED-2", "cardNumber": "4111111111111111"}
    body = json.dumps({**secret, "card": secret}).encode()
    headers = ("Authorization: Bearer MARKED-3", "Cookie: a=MARKED-4", "X-Signature: MARKED-5")
    await inspector.proxy.send("POST", f"{LOOKUP}?pin=MARKED-6", *headers, body=body)
    page = await browse(inspector.proxy.running.inspector)
    detail = await open_row(page, 1)
    for button in (
        "tab-attempts",
        "tab-reply",
        "tab-exchange",
        "body-raw",
        "body-hex",
        "body-tree",
    ):
        await detail.get_by_test_id(button).first.click()
        shown = await page.evaluate(DUMP)
        assert "MARKED" not in shown
        assert "4111111111111111" not in shown
    await detail.get_by_test_id("edit-replay").click()
    values = await page.evaluate(
        "[...document.querySelectorAll('input, textarea')].map((one) => one.value).join()"
    )
    assert "MARKED" not in values
    assert MASK in values


async def test_an_export_can_be_read_by_another_program(inspect, browse, tmp_path):
    inspector = await inspect()
    await inspector.proxy.get(BALANCE)
    page = await browse(inspector.proxy.running.inspector)
    await expect(page.get_by_test_id("count")).to_have_text("1 shown")
    async with page.expect_download() as waiting:
        await page.get_by_test_id("export").click()
    path = tmp_path / "out.har"
    await (await waiting.value).save_as(path)
    other = await browse("about:blank")
    await other.context.route_from_har(path, not_found="abort")
    # The browser gets what was captured out of the file, and nothing from the proxy.
    reply = await other.goto(inspector.proxy.url + BALANCE)
    assert (await reply.json())["code"] == "00"
    assert len(await inspector.rows()) == 1


async def test_what_was_not_read_is_not_called_empty(inspect, browse):
    inspector = await inspect()
    await inspector.proxy.raw(
        b"POST /v1/x HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 3\r\n\r\nabc"
    )
    page = await browse(inspector.proxy.running.inspector)
    detail = await open_row(page, 1)
    await expect(detail).to_contain_text("the body had not been read")
    await expect(detail.get_by_test_id("replay")).to_be_disabled()


async def test_an_old_page_says_what_to_do(inspect, browse):
    inspector = await inspect()
    page = await browse(inspector.base)
    await expect(page.locator("body")).to_contain_text("the proxy printed")
    page = await browse(inspector.proxy.running.inspector)
    await expect(page.get_by_test_id("conn")).to_have_text("Live")
    await page.context.clear_cookies()
    await page.get_by_test_id("nav-sessions").click()
    await expect(page.locator("body")).to_contain_text("Open the address")
