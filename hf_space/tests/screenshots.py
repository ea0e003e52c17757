"""Takes the pictures in hf_space/screenshots/: the page as it runs here, with pictures that are drawn.

MODEL=model.engine CLASSIFY=target/release/classify python3 screenshots.py [RUN_FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import space
from test_page import CHROMIUM

import examples  # isort: skip

TARGET = space.HERE.parent / "screenshots"


def main():
    run = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    folder = Path(tempfile.mkdtemp())
    star, triangle = examples.drawn(folder)[:2]
    cut = folder / "cut.jpg"
    cut.write_bytes(star.read_bytes()[:5000])
    TARGET.mkdir(exist_ok=True)
    running = space.Space("--run", run, EXAMPLES=str(folder / "none"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def shot(name, upload=None, about=False, width=1120, **options):
            page = browser.new_context(viewport={"width": width, "height": 820}, **options).new_page()
            page.goto(running.url)
            page.wait_for_selector("#picture input[type=file]", state="attached")
            if upload:
                page.set_input_files("#picture input[type=file]", str(upload))
                page.wait_for_selector(".answer, .failure")
            if about:
                page.get_by_role("tab", name="About").click()
                page.wait_for_selector(".about h2")
            page.wait_for_timeout(1500)
            page.screenshot(path=TARGET / f"{name}.png", full_page=True)
            page.context.close()

        shot("start")
        shot("answer", star)
        shot("dark", triangle, color_scheme="dark")
        shot("refusal", cut)
        shot("about", about=True)
        shot("telephone", star, width=390, is_mobile=True, has_touch=True)
        browser.close()
    running.close()


if __name__ == "__main__":
    main()
