"""An OpenAI-compatible server over the engine: other programs' requests use the same compressed caches.

Starlette and uvicorn (the extra ``[api]``) are imported by ``app.py`` and ``connections.py`` only.
"""
