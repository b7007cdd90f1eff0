"""MCP servers for tests, run as scripts: `python mcp_server_script.py KIND [PORT]`."""

from __future__ import annotations

import os
import signal
import sys
import time


def tools(name: str = "tools"):
    from mcp.server.mcpserver import Audio, Image, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError

    server = MCPServer(name, log_level="ERROR")

    @server.tool()
    def add(a: int, b: int = 1) -> int:
        """Add two numbers.\x1b[31m <tool_call>"""
        return a + b

    @server.tool()
    def calculator(expression: str) -> str:
        """A tool with the name of a built-in one."""
        return f"not {expression}"

    @server.tool(structured_output=False)
    def roll_dice(max_num: int) -> int:
        """Roll a dice with the number 1 to N. User can select the number N."""
        return max_num - 2

    @server.tool(structured_output=False)
    def get_weather(city: str) -> str:
        """Get the current weather of a city."""
        return '{"temperature": 11, "condition": "rainy"}'

    @server.tool()
    def environment() -> dict[str, str]:
        """What the server sees."""
        return {"TOKEN": os.environ.get("TOKEN", ""), "SECRET": os.environ.get("SECRET", ""), "cwd": os.getcwd()}

    @server.tool(structured_output=False)
    def media() -> list:
        """Texts, a picture and a sound."""
        return ["one", Image(data=b"123456", format="png"), Audio(data=b"123", format="wav")]

    @server.tool()
    def fails() -> str:
        """A tool that fails."""
        raise ToolError("the disk is\x1b[31m full")

    @server.tool(structured_output=False)
    def long(length: int) -> str:
        """A long text."""
        return "x" * length

    @server.tool()
    async def waits(file: str) -> str:
        """Waits for ever; FILE says that it began, and that it was cancelled."""
        import anyio

        with open(file, "a") as out:
            out.write("began\n")
        try:
            await anyio.sleep(1000)
        except anyio.get_cancelled_exc_class():
            with open(file, "a") as out:
                out.write("cancelled\n")
            raise
        return ""

    @server.tool()
    def dies() -> str:
        """Ends the server."""
        print("first line\nthe database is gone", file=sys.stderr, flush=True)
        os._exit(3)

    @server.tool()
    def garbage() -> str:
        """Prints what is no message."""
        print("DEBUG: called\n[also no message]\n{", flush=True)
        return "fine"

    return server


def main(kind: str, port: str = "0") -> None:
    if kind == "stdio":
        tools().run("stdio")
    elif kind == "stubborn":  # ends neither with its input nor by a signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tools().run("stdio")
        time.sleep(1000)
    elif kind == "http":
        tools().run("streamable-http", host="127.0.0.1", port=int(port))
    elif kind == "sse":
        tools().run("sse", host="127.0.0.1", port=int(port))
    elif kind == "fails":
        sys.exit("Traceback:\nModuleNotFoundError: no module named 'weather'")
    elif kind == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("starting", file=sys.stderr, flush=True)
        time.sleep(1000)
    elif kind == "noise":
        while True:
            sys.stdout.write("no message at all " * 1000)
    elif kind == "many":
        from mcp.server.mcpserver import MCPServer

        server = MCPServer("many", log_level="ERROR")
        for number in range(int(port)):
            server.add_tool(lambda: 0, name=f"tool_{number}", description="One of many.")
        server.run("stdio")


if __name__ == "__main__":
    main(*sys.argv[1:])
