"""`evoengine studies` and the verbs below it: what they print, ask, refuse and leave behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import lay_out
from test_archive import ARTIFACT, ESTIMATE, proposals
from test_cli import Ran, Run, database, one_line, run  # noqa: F401  # fixtures

from evoengine.archive.archive import Archive
from evoengine.archive.lease import Owner
from evoengine.build.cache import CacheLock, entry_folder
from evoengine.build.pruning import Pruned, prune
from evoengine.cli import main
from evoengine.errors import UserError
