"""The denoising movie: one self-contained page that shows every text after each step."""

import json
from pathlib import Path

from textdiff.generation import Generation

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>textdiff: from noise to text</title>
<style>
body { font: 17px/1.6 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }
form { position: sticky; top: 0; background: Canvas; padding: .5em 0; display: flex; gap: 1em; }
input { flex: 1; }
p { border-left: 3px solid #8884; padding-left: 1em; min-height: 1.6em; }
.moving { opacity: .35; }
</style>
<form><button type="button">play</button><input type="range" min="0"><output></output></form>
<main></main>
<script>
const texts = TEXTS;
const [bar, button, shown] = ["input", "button", "output"].map(n => document.querySelector(n));
const steps = texts[0].length;
bar.max = steps - 1;
const words = text => text.split(/\\s+/).filter(Boolean);
const make = tag => document.createElement(tag);
const paragraphs = texts.map(() => document.querySelector("main").appendChild(make("p")));
function draw() {
  shown.textContent = `step ${+bar.value + 1} of ${steps}`;
  texts.forEach((frames, n) => {
    const last = words(frames[steps - 1]);
    paragraphs[n].replaceChildren(...words(frames[bar.value]).flatMap((word, i) => {
      const span = make("span");
      span.textContent = word;
      if (word !== last[i]) span.className = "moving";
      return [span, " "];
    }));
  });
}
let timer = null;
function pause() { clearInterval(timer); timer = null; button.textContent = "play"; }
function advance() {
  bar.value++;
  draw();
  if (+bar.value === steps - 1) pause();
}
function play() {
  if (+bar.value === steps - 1) bar.value = 0;
  button.textContent = "pause";
  timer = setInterval(advance, 3000 / steps);
}
button.onclick = () => { timer ? pause() : play(); draw(); };
bar.oninput = draw;
bar.value = 0;
draw();
play();
</script>
</html>
"""


def write_movie(made: Generation, path: str | Path) -> None:
    """Save the page; words that differ from those of the last step are pale.

    Args:
        made: texts written with `trajectory=True`; all candidates are shown.
        path: of the HTML file.

    Raises:
        ValueError: nothing was recorded, as by autoregressive models, which write word by word.
    """
    if not any(made.trajectory):
        raise ValueError("no steps to show: a movie needs a diffusion model and trajectory=True")
    data = json.dumps(made.trajectory, ensure_ascii=False).replace("<", "\\u003c")
    Path(path).write_text(PAGE.replace("TEXTS", data), encoding="utf-8")
