"""What a browser makes of a page."""


def drawn(browser, file):
    """The page, once its figures are drawn, and what its scripts complained of."""
    said = []
    browser.on("console", lambda message: message.type == "error" and said.append(message.text))
    browser.on("pageerror", lambda error: said.append(str(error)))
    browser.goto(file.as_uri())
    browser.wait_for_selector("body[data-drawn=yes]")
    return said
