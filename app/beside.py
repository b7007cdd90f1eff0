"""The page beside an HTTP server, on the same model, worker and port: `exaone4-mlx serve --app`.

Notes:
- The model is the server's. The page downloads and converts others, and cannot use them.
- Gradio ends its streams only if it is told to. `end` does that, so that the server need not wait for open tabs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exaone4_mlx import BUILTIN_TOOLS, ConversationStore, Exaone4ForCausalLM, Fit, PrefixStore, Tokenizer
from exaone4_mlx.measure.model_jobs import ModelJobs

from .engine import ChatEngine, LoadedModel
from .models import Choice, step_size
from .server import PageAddress, data_folder, launch_options, upload_folder
from .settings import Settings
from .state import AppState


class PageBeside:
    """The page as an ASGI application, with its lifespan. `close` it at the end."""

    def __init__(
        self,
        model: Exaone4ForCausalLM,
        tokenizer: Tokenizer,
        *,
        name: str,
        needs: Fit,
        address: PageAddress,
        folder: Path | None = None,
        kv: Mapping[str, Any] | None = None,
        thinking: bool = False,
        prefixes: PrefixStore | None = None,
    ) -> None:
        """`needs` has the longest conversation; `folder` is where conversations are (default: the user's).

        `prefixes` is the store of the server.
        """
        from fastapi import FastAPI
        from gradio import mount_gradio_app

        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        folder = folder or data_folder()
        self._left = contextlib.ExitStack()
        os.environ["GRADIO_TEMP_DIR"] = str(self._left.enter_context(upload_folder(folder)))
        loaded = LoadedModel(Choice(name, name), model, tokenizer, needs, step_size(model, tokenizer))
        store = ConversationStore(folder / "conversations")
        store.trash.empty()
        self.state = AppState(
            ChatEngine(loaded, given=name, kv=kv, prefixes=prefixes, shared="this page is beside a server, which uses"),
            store,
            tools=BUILTIN_TOOLS,
            settings=Settings(thinking=thinking),
            makes_titles=True,
            jobs=ModelJobs(folder / "models"),
        )
        from .ui import build

        self._blocks = build(self.state)
        options = launch_options(address)
        self._blocks.max_threads = self._blocks._queue.max_thread_count = options.pop("max_threads")
        del options["share"]
        host = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self._app = mount_gradio_app(host, self._blocks, "/", address.host, address.port or 0, **options)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    @property
    def is_busy(self) -> bool:
        """Whether a reply is in progress."""
        return bool(self.state.running)

    def end(self) -> None:
        """Ends the streams of open tabs. Call it in the thread of the event loop."""
        self._blocks.close(verbose=False)

    def close(self, timeout: float = 5.0) -> None:
        """Ends all replies, and waits until they are written."""
        self.state.stop_all(timeout)
        self._left.close()
