"""The first paint loads neither MLX nor a model."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import asyncio, sys
from tqchat import paths, settings
from tqchat.ui.app import TqchatApp
from tqchat.ui.widgets.prompt.prompt import Prompt

class Silent:
    def __init__(self, on_event): pass
    def start(self):
        heavy.append([name for name in ("mlx", "mlx_lm", "transformers", "numpy") if name in sys.modules])
    def submit(self, command): pass
    def shutdown(self, timeout): pass
    def stop(self): pass

heavy = []

async def main():
    places = paths.locate(); places.ensure()
    app = TqchatApp(places, settings.load(places), engine=Silent)
    async with app.run_test(size=(120, 40)) as pilot:
        while not heavy:
            strips = app.screen._compositor.render_strips()
            assert not any("No model" in strip.text for strip in strips), "one is about to be loaded"
            await pilot.pause(0.01)
        strips = app.screen._compositor.render_strips()
        assert any("Ask something to begin" in strip.text for strip in strips)
    print(heavy[0])

asyncio.run(main())
"""


def test_the_screen_is_painted_before_anything_heavy_is_imported() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
