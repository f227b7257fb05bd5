"""Builds the parts from a `RunConfig`: the one place where a section of the configuration meets the class that takes it.

Invariant: every spawner builds through these functions, so the modes differ in where a part runs, never in what it is.
"""

import zlib
from pathlib import Path

from actors.captions import CaptionTracker
from actors.environment import make_environment
from actors.policy import PolicyNet
from actors.worker import RolloutWorker
from cluster.run_directory import RunDirectory
from configs.schema import RunConfig
from llm_server.annotator import Annotator
from llm_server.caption_book import CaptionBook
from llm_server.service_process import ServiceProcess
from reward_models.training import AnnotationPipeline, build_reward_model
