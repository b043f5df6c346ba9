"""Draws docs/report.png: the first screen of a run's page, for the README.

python docs/report.py outputs/NAME/report.html     (needs Chromium)
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1100, 900


def main() -> None:
    """Take the picture of the page that the command line names."""
    page = Path(sys.argv[1]).resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        shown.goto(page.as_uri())
        shown.wait_for_selector(".main-svg")
        shown.screenshot(path=Path(__file__).with_suffix(".png"))
        browser.close()


if __name__ == "__main__":
    main()
