"""A page read back as a tree of elements, strictly: every element that is opened is closed."""

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "input", "link", "path", "use", "rect", "image", "line", "circle"}


class Element:
    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children, self.texts = tag, dict(attributes), [], []

    def all(self, tag=None, **attributes):
        """Every element below this one with that tag and these attributes."""
        for child in self.children:
            if tag in (None, child.tag) and all(child.attributes.get(k) == v for k, v in attributes.items()):
                yield child
            yield from child.all(tag, **attributes)

    def text(self):
        return "".join(part if isinstance(part, str) else part.text() for part in self.texts)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Element("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        element = Element(tag, attrs)
        self.open[-1].children.append(element)
        self.open[-1].texts.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        element = Element(tag, attrs)
        self.open[-1].children.append(element)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].texts.append(data)


def read(html):
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert [e.tag for e in reader.open] == ["root"], "an element is left open"
    return reader.root


def hosts(html):
    """Everything in the page that a browser would fetch or that names an address."""
    root = read(html)
    found = []
    for element in root.all():
        for name, value in element.attributes.items():
            leaves = name in ("src", "href", "xlink:href", "action", "poster", "data", "srcset")
            if leaves and not (value or "").startswith(("#", "data:")):
                found.append(f"{element.tag} {name}={value}")
            if "//" in (value or "") and not value.startswith("data:"):
                found.append(f"{element.tag} {name}={value}")
    for style in root.all("style"):
        found += [line for line in style.text().splitlines() if "@import" in line or "//" in line or "url(" in line]
    return found
