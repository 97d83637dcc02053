"""A real browser: Debian's Chromium, driven by Playwright."""

import os
import shutil
from contextlib import AsyncExitStack

import pytest
from playwright.async_api import async_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@pytest.fixture
async def browse():
    """Open pages: `browse(url, **context)`; at the end no console may have complained."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        assert not os.environ.get("CI"), "CI has to install Chromium"
        pytest.skip("NO CHROMIUM HERE: the pages are not tested (install the package chromium)")
    said = []
    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        stack.push_async_callback(browser.close)

        async def begin(url, **options):
            options = {"viewport": {"width": 1280, "height": 800}, **options}
            context = await browser.new_context(**options)
            await context.grant_permissions(["clipboard-read", "clipboard-write"])
            page = await context.new_page()
            page.on("pageerror", lambda error: said.append(f"error: {error}"))
            page.on("console", lambda line: said.append(f"{line.type}: {line.text}"))
            await page.add_init_script(
                "addEventListener('securitypolicyviolation', (event) =>"
                " console.error('CSP ' + event.violatedDirective + ' ' + event.blockedURI))"
            )
            await page.goto(url)
            return page

        begin.said = said
        yield begin
    # What a test asks for on purpose (a 409, a server that is away) the browser reports too.
    left = [line for line in said if "Failed to load resource" not in line]
    left = [line for line in left if "net::ERR_" not in line]
    assert left == []
