"""The page itself: what stands where, and what leads to what."""

import os
from html import escape
from pathlib import Path

import about
import examples
import result
from gradio_without_stubs import gradio
from settings import HERE, KEPT, MAX_MEGABYTES, MAX_PIXELS, MAX_WAITING, SWEEP

PRECISIONS = {"fp32": "fp32: 32 bits", "bf16": "bf16: 16 bits", "int8": "int8: 8 bits"}
SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
PRIVACY = (
    "Pictures are read by a program on this server and by nothing else. They are deleted within "
    f"{(KEPT + SWEEP) // 60} minutes, and nothing is recorded of them."
)
API = """from gradio_client import Client, handle_file

client = Client("{address}")
answer = client.predict(handle_file("photo.jpg"), "{precision}", api_name="/classify")
print(answer["predictions"][0]["label"])
"""
# The answer is announced to those who hear the page, and each example has a name for them.
ON_LOAD = """() => {
    document.querySelector("#answer")?.setAttribute("aria-live", "polite");
    const name = () => document.querySelectorAll("#examples .gallery-item").forEach((item, at) => {
        const file = item.querySelector("img")?.src.split("/").pop().split(".")[0] ?? at + 1;
        item.setAttribute("aria-label", `Example: ${decodeURIComponent(file)}`);
    });
    name();
    setTimeout(name, 1000);
}"""


def as_uploaded(image):
    """An image component that hands on the upload as it is: only the classifier decodes it, and says what is wrong
    with it. (Gradio opens it with Pillow first, and fails on what is no picture without a sentence. A class of its own
    would make Gradio write a .pyi file beside this one.)"""
    image.preprocess = lambda payload: payload.path if payload is not None else None
    return image


def build(described, answers, run, examples_folder):
    machine = described["machine"]
    with gradio.Blocks(title="What is in this picture?", delete_cache=(SWEEP, KEPT)) as blocks:
        gradio.HTML(
            f"<header><h1>What is in this picture?</h1><p>{about.headline(described)}</p></header>", elem_id="head"
        )
        with gradio.Tab("Classify"):
            with gradio.Row(equal_height=False, elem_id="classify"):
                with gradio.Column(scale=2, min_width=300, elem_id="question-side"):
                    picture = as_uploaded(
                        gradio.Image(
                            type="filepath",
                            image_mode=None,
                            sources=["upload", "clipboard", "webcam"],
                            height=320,
                            label="Your picture",
                            elem_id="picture",
                            buttons=[],
                            placeholder="Drop a picture here, or click to choose one\n"
                            f"JPEG, PNG or WebP, up to {MAX_MEGABYTES} MB",
                        )
                    )
                    choices = [(choice_name(name, machine), name) for name in machine["precisions"]]
                    precision = gradio.Radio(
                        choices,
                        value=machine["precision"],
                        label="Numbers that the network computes with",
                        elem_id="precision",
                    )
                    gradio.Examples(
                        [[str(path)] for path in examples.pictures(examples_folder, Path(run, "datasets/synth/val"))],
                        [picture],
                        label="Or take one of these",
                        cache_examples=False,
                        elem_id="examples",
                    )
                with gradio.Column(scale=3, min_width=300, elem_id="answer-side"):
                    answer = gradio.HTML(result.WAITING, elem_id="answer")
                    gradio.HTML("".join(f"<p class='knows'>{text}</p>" for text in (*about.knows(described), PRIVACY)))
        with gradio.Tab("About"):
            gradio.HTML(
                f"<section class='about'><h2>The model</h2>{about.model_table(described)}"
                f"<h2>The training log of this Space</h2>{about.training(run)}"
                f"<h2>Limits</h2><p>JPEG, PNG and WebP are read, up to {MAX_MEGABYTES} MB and "
                f"{MAX_PIXELS / 1e6:.0f} million pixels, turned as their camera says, transparency on white. "
                "One picture is answered at a time.</p>"
                f"<h2>The heat map</h2><p>{HEAT_MAP}</p><h2>From a program</h2>"
                f"<pre>{escape(API.format(address=address(), precision=machine['precision']))}</pre></section>"
            )
        wire(answers, picture, precision, answer)
        blocks.load(fn=None, js=ON_LOAD)
    return blocks


HEAT_MAP = (
    "The network's last layer adds up what each part of the picture speaks for a class; that sum, plus a number that "
    "belongs to the class alone, is the class's score, and the scores become the percentages. The map shows the terms "
    "of this sum and no estimate: yellow parts speak for the class, red ones the most, clear ones not at all or "
    "against it."
)


def address():
    """Of this page, as a client names it: hosts tell the Space's name."""
    return os.environ.get("SPACE_ID") or f"http://127.0.0.1:{os.environ.get('GRADIO_SERVER_PORT', 7860)}/"


def choice_name(name, machine):
    return PRECISIONS[name] + (" (fastest here)" if name == machine["precision"] else "")


def wire(answers, picture, precision, answer):
    """The answer follows the picture and the switch; programs have an address of their own."""
    one_at_a_time = {"concurrency_id": "classifier", "concurrency_limit": 1}
    gradio.on(
        [picture.change, precision.change],
        answers.for_page,
        [picture, precision],
        answer,
        api_name="page",
        api_visibility="undocumented",
        show_progress="minimal",
        show_progress_on=answer,
        trigger_mode="always_last",
        **one_at_a_time,
    )
    button, found = gradio.Button(visible=False), gradio.JSON(label="answer", visible=False)
    button.click(
        answers.for_programs,
        [picture, precision],
        found,
        api_name="classify",
        api_description="Five classes of a picture, with probabilities and what each part of it adds to their scores.",
        **one_at_a_time,
    )


def serve(blocks):
    """Until the process is ended."""
    neutral = gradio.themes.colors.slate
    theme = gradio.themes.Base(
        primary_hue=gradio.themes.colors.orange,
        neutral_hue=neutral,
        font=SYSTEM_FONTS,
        font_mono=["ui-monospace", "Menlo", "monospace"],
        radius_size=gradio.themes.sizes.radius_lg,
    )
    # Text that is read at a contrast of 4.5 to 1 at least.
    theme.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
    )
    blocks.queue(max_size=MAX_WAITING)
    blocks.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1"),
        theme=theme,
        css_paths=HERE / "style.css",
        max_file_size=f"{MAX_MEGABYTES}mb",
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        share=False,
        show_error=False,
    )
