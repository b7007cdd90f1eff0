"""Chats: turns, tools, history and saved files."""
