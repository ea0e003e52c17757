"""Takes the pictures in hf_space/screenshots/: the page as it runs here, with pictures that are drawn.

MODEL=model.engine CLASSIFY=target/release/classify python3 screenshots.py [RUN_FOLDER]
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import space
from test_page import CHROMIUM

import examples  # isort: skip

TARGET = space.HERE.parent / "screenshots"


def main():
    run = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
    folder = Path(tempfile.mkdtemp())
    of_class = {path.stem: path for path in examples.pictures(Path(run, "datasets/synth/val"))}
    first, second = (of_class.get(name) or examples.drawn(folder)[0] for name in ("rings", "disc"))
    cut = folder / "cut.jpg"
    cut.write_bytes(first.read_bytes()[:2000])
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
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
            shot.quantize(255, dither=Image.Dither.NONE).save(TARGET / f"{name}.png", optimize=True)
            page.context.close()

        shot("start")
        shot("answer", first)
        shot("dark", second, color_scheme="dark")
        shot("refusal", cut)
        shot("about", about=True)
        shot("telephone", first, width=390, is_mobile=True, has_touch=True)
        browser.close()
    running.close()


if __name__ == "__main__":
    main()
