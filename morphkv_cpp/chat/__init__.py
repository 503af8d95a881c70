"""Chats: sessions, templates, files."""
