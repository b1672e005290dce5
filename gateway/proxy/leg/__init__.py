"""The upstream leg over HTTP/1.1: our own client, as lean as the calls are alike.

Asyncio protocols, httptools' parser (llhttp, strict), and of HTTP only what providers of models speak. What the rest of
the gateway knows of it is ``gateway.proxy.upstream``.
"""
