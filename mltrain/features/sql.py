"""Names and values as Spark SQL text."""


def column(name: str) -> str:
    """A column's name, quoted."""
    return "`" + name.replace("`", "``") + "`"


def literal(value: str) -> str:
    """A string literal that survives whatever the string holds."""
    return f"CAST(X'{value.encode().hex()}' AS STRING)"
