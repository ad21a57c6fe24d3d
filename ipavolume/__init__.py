"""Volume lifecycle and upgrade manager for applications in one container."""
