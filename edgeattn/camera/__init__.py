"""Engines that watch: the newest frame of a camera, or every frame of a file, through an engine to whoever wants it.

`for result in edgeattn.camera.open("rtsp://...", "m.engine")` is the whole of it; see `open`.
"""

from edgeattn.camera.frame import EndOfStream, Frame, Source
from edgeattn.camera.outlets import Result, Sink
from edgeattn.camera.pipeline import Pipeline
from edgeattn.camera.pipeline import open_pipeline as open
from edgeattn.camera.timing import Histogram, Stats

__all__ = ["EndOfStream", "Frame", "Histogram", "Pipeline", "Result", "Sink", "Source", "Stats", "open"]
