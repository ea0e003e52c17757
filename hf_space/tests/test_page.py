"""The real page, through its API and in a headless browser: what visitors do, and what goes wrong.

    MODEL=model.engine CLASSIFY=target/release/classify python3 -m unittest test_page

The browser's tests need playwright and a Chromium (CHROMIUM names it; else it is looked for); without one they are
skipped and say so.
"""

import io
import os
import shutil
import signal
import tempfile
import threading
import time
import unittest
from pathlib import Path

import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import space

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
# A JPEG's own losses, where one is decoded twice by different ways, in grey levels.
NEAR = 6.0

running = None
folder = None


def setUpModule():
    global running, folder
    folder = Path(tempfile.mkdtemp(prefix="space-test-"))
    running = space.Space("--run", folder)


def tearDownModule():
    running.close()
    shutil.rmtree(folder)


def picture(name, data):
    path = folder / name
    path.write_bytes(data)
    return str(path)


class TheApi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = Client(running.url, verbose=False)

    def ask(self, name, data, precision=None):
        # The client's own default is the page's.
        more = [precision] if precision else []
        return self.client.predict(handle_file(picture(name, data)), *more, api_name="/classify")

    def refusal(self, name, data):
        with self.assertRaises(AppError) as caught:
            self.ask(name, data)
        sentence = str(caught.exception)
        self.assertNotIn(str(folder), sentence)
        self.assertNotIn("Traceback", sentence)
        self.assertTrue(sentence.endswith("."), sentence)
        return sentence

    def test_an_answer_has_five_classes_and_their_evidence(self):
        answer = self.ask("a.jpg", space.encoded(space.drawing(), "JPEG"))
        shares = [one["probability"] for one in answer["predictions"]]
        self.assertEqual(len(shares), 5)
        self.assertEqual(shares, sorted(shares, reverse=True))
        for one, evidence in zip(answer["predictions"], answer["explanation"]["maps"], strict=True):
            self.assertEqual(one["index"], evidence["index"])
            total = evidence["bias"] + sum(sum(row) for row in evidence["values"])
            self.assertAlmostEqual(total, evidence["logit"], delta=1e-3 * max(1, abs(total)))
        self.assertGreater(answer["milliseconds"]["run"], 0)

    def test_the_switch_offers_what_there_is_and_does_what_it_says(self):
        data = space.encoded(space.drawing(), "JPEG")
        described = self.client.view_api(print_info=False, return_format="dict")
        names = described["named_endpoints"]["/classify"]["parameters"][1]["type"]["enum"]
        self.assertIn("fp32", names)
        for name in names:
            self.assertTrue(self.ask("a.jpg", data, name)["cpu_path"].endswith(" " + name))

    def test_a_photograph_is_turned_as_its_camera_says(self):
        upright = space.seen(self.ask("u.png", space.encoded(space.drawing(), "PNG")))
        for kind, options in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})):
            turned = space.seen(self.ask(f"t.{kind.lower()}", space.rotated(space.drawing(), kind, **options)))
            self.assertLess(space.distance(turned, upright), NEAR, kind)
        lying = space.drawing().transpose(Image.Transpose.ROTATE_90)
        lying = space.seen(self.ask("l.png", space.encoded(lying, "PNG")))
        self.assertGreater(space.distance(lying, upright), 3 * NEAR, "the same when it is turned")

    def test_transparency_lies_on_white_and_cmyk_has_its_colours(self):
        upright = space.seen(self.ask("u.png", space.encoded(space.drawing(), "PNG")))
        cmyk = space.seen(self.ask("c.jpg", space.encoded(space.drawing().convert("CMYK"), "JPEG", quality=95)))
        self.assertLess(space.distance(cmyk, upright), NEAR)
        clear = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
        for kind in ("PNG", "WEBP"):
            shown = space.seen(self.ask(f"clear.{kind.lower()}", space.encoded(clear, kind)))
            self.assertEqual(shown.getextrema(), ((255, 255),) * 3, kind)

    def test_what_is_no_photograph_is_refused_with_a_sentence(self):
        whole = space.encoded(space.drawing(), "JPEG")
        svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
        for name, data, words in [
            ("a.svg", svg, "an SVG drawing"),
            ("renamed.png", svg, "an SVG drawing"),
            ("a.gif", space.encoded(space.drawing(), "GIF"), "a GIF image"),
            ("a.pdf", b"%PDF-1.7 and so on", "a PDF document"),
            ("cut.jpg", whole[: len(whole) // 2], "cut short"),
            ("a.jpg", b"hello", "not an image"),
        ]:
            self.assertIn(words.lower(), self.refusal(name, data).lower(), name)

    def test_size_has_limits(self):
        bomb = space.encoded(Image.new("1", (20_000, 20_000)), "PNG")
        self.assertLess(len(bomb), 1_000_000)
        self.assertIn("400000000 pixels, more than the 50000000", self.refusal("bomb.png", bomb))
        # Gradio's client would refuse to send it; others do not.
        large = {"files": ("large.jpg", space.encoded(space.drawing(), "JPEG") + bytes(30 << 20))}
        reply = httpx.post(running.url + "gradio_api/upload", files=large, timeout=60)
        self.assertEqual(reply.status_code, 413, reply.text)

    def test_no_picture(self):
        with self.assertRaisesRegex(AppError, "No picture was given"):
            self.client.predict(None, api_name="/classify")

    def test_files_of_the_server_cannot_be_asked_about(self):
        with self.assertRaises(AppError):
            self.client.predict({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, api_name="/classify")

    def test_killed_in_the_middle(self):
        """Stopped, so that the request waits in it; then killed. The visitor gets an answer all the same."""
        pid, answers = running.classifier(), []
        os.kill(pid, signal.SIGSTOP)
        data = space.encoded(space.drawing(), "JPEG")
        visitor = threading.Thread(target=lambda: answers.append(self.ask("a.jpg", data)))
        visitor.start()
        time.sleep(1.0)
        self.assertEqual(answers, [])
        os.kill(pid, signal.SIGKILL)
        visitor.join(timeout=60)
        self.assertEqual(len(answers[0]["predictions"]), 5)
        self.assertNotEqual(running.classifier(), pid)


@unittest.skipUnless(CHROMIUM, "no Chromium was found (CHROMIUM names one)")
class TheBrowser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from playwright.sync_api import sync_playwright

        cls.playwright = sync_playwright().start()
        # A camera that shows a test picture, and needs no click to be allowed.
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        cls.browser = cls.playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.playwright.stop()

    def visit(self, width=1280, height=900, **options):
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.addCleanup(context.close)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(running.url)
        page.wait_for_selector("#picture input[type=file]", state="attached")
        return page

    def upload(self, page, name, data):
        page.set_input_files("#picture input[type=file]", picture(name, data))

    def verdict(self, page):
        return page.inner_text(".answer .verdict")

    def test_a_picture_is_answered_and_each_class_has_its_map(self):
        page = self.visit()
        self.upload(page, "a.jpg", space.encoded(space.drawing(), "JPEG"))
        page.wait_for_selector(".answer")
        self.assertEqual(page.locator(".bars .bar").count(), 5)
        for place in range(5):
            page.locator(".bars input").nth(place).check()
            shown = page.locator(".stack .heat:visible")
            self.assertEqual((shown.count(), page.locator(".sum:visible").count()), (1, 1))
            self.assertTrue(shown.get_attribute("alt").startswith("Heat map for "))
        page.locator("#heat").uncheck()
        self.assertEqual(page.locator(".stack .heat:visible").count(), 0)
        # By keyboard alone.
        page.locator(".bars input").nth(0).focus()
        page.keyboard.press("ArrowDown")
        self.assertTrue(page.locator(".bars input").nth(1).is_checked())
        self.assertEqual(page.locator("img:not([alt])").count(), 0)
        self.assertEqual(page.errors, [])

    def test_the_switch_asks_again(self):
        page = self.visit()
        self.upload(page, "a.jpg", space.encoded(space.drawing(), "JPEG"))
        page.wait_for_selector(".answer")
        page.get_by_label("fp32").check()
        page.wait_for_selector(".facts code:has-text('fp32')")

    def test_a_rotated_picture_is_answered_as_the_upright_one(self):
        page = self.visit()
        self.upload(page, "u.png", space.encoded(space.drawing(), "PNG"))
        page.wait_for_selector(".answer")
        upright = self.verdict(page)
        page.reload()
        page.wait_for_selector("#picture input[type=file]", state="attached")
        self.upload(page, "t.png", space.rotated(space.drawing(), "PNG"))
        page.wait_for_selector(".answer")
        self.assertEqual(self.verdict(page).split("\n")[:2], upright.split("\n")[:2])

    def test_a_broken_file_is_answered_with_a_sentence_and_the_next_is_answered(self):
        page = self.visit()
        whole = space.encoded(space.drawing(), "JPEG")
        self.upload(page, "cut.jpg", whole[: len(whole) // 2])
        page.wait_for_selector(".failure")
        self.assertIn("cut short", page.inner_text(".failure"))
        self.assertEqual(page.get_attribute(".failure", "role"), "alert")
        page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
        page.wait_for_selector(".note:not(.failure)")
        self.upload(page, "whole.jpg", whole)
        page.wait_for_selector(".answer")

    def test_a_picture_is_pasted(self):
        page = self.visit()
        data = list(space.encoded(space.drawing(), "PNG"))
        page.evaluate(
            """async bytes => {
                const file = new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"});
                const item = {types: ["image/png"], getType: async () => file};
                Object.defineProperty(navigator, "clipboard", {value: {read: async () => [item]}});
            }""",
            data,
        )
        page.get_by_label("Paste from clipboard").click()
        page.wait_for_selector(".answer")

    def test_a_picture_of_the_webcam(self):
        page = self.visit(permissions=["camera"])
        page.get_by_label("Capture from camera").click()
        page.locator("#picture").get_by_text("Click to Access Webcam").click()
        page.wait_for_function("document.querySelector('#picture video')?.videoWidth > 0")
        page.get_by_label("capture photo").click()
        page.wait_for_selector(".answer")

    def test_an_example_is_answered(self):
        page = self.visit()
        page.locator("#examples button:has(img), #examples .gallery-item").first.click()
        page.wait_for_selector(".answer")

    def test_two_visitors_at_once_get_their_own_answers(self):
        pictures = [space.drawing(), space.drawing().rotate(180).convert("L").convert("RGB")]
        pages = [self.visit(), self.visit()]
        for at, page in enumerate(pages):
            self.upload(page, f"visitor{at}.png", space.encoded(pictures[at], "PNG"))
        shown = []
        for page in pages:
            page.wait_for_selector(".answer")
            uri = page.get_attribute(".stack img:not(.heat)", "src")
            shown.append(Image.open(io.BytesIO(space.base64.b64decode(uri.partition(",")[2]))).convert("RGB"))
        client = Client(running.url, verbose=False)
        for at, image in enumerate(shown):
            path = picture(f"visitor{at}.png", space.encoded(pictures[at], "PNG"))
            answer = client.predict(handle_file(path), api_name="/classify")
            seen = space.seen(answer).resize(image.size, Image.Resampling.NEAREST)
            self.assertLess(space.distance(seen, image), NEAR, f"visitor {at} was shown another picture")

    def test_it_fits_a_telephone(self):
        for width in (320, 390):
            page = self.visit(width, 800, is_mobile=True, has_touch=True)
            self.upload(page, "a.jpg", space.encoded(space.drawing(), "JPEG"))
            page.wait_for_selector(".answer")
            self.assertEqual(page.evaluate("document.documentElement.scrollWidth"), width, "classify")
            tops = [page.locator(part).bounding_box()["y"] for part in ("#picture", ".answer", "#precision")]
            self.assertEqual(tops, sorted(tops), "picture, answer, switch")
            page.get_by_role("tab", name="About").click()
            page.wait_for_selector(".about h2")
            self.assertEqual(page.evaluate("document.documentElement.scrollWidth"), width, "about")

    def test_about_says_what_the_model_file_says(self):
        page = self.visit()
        page.get_by_role("tab", name="About").click()
        text = page.inner_text(".about")
        for words in ("SHA-256", "Architecture", "no curves to show"):
            self.assertIn(words, text)


if __name__ == "__main__":
    unittest.main()
