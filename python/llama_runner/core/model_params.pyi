# compiled; nothing in it is for Python
