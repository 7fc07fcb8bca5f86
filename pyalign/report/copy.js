document.getElementById("copy").addEventListener("click", async () => {
  const text = document.getElementById("numbers").textContent;
  const said = document.getElementById("copied");
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "copied";
  } catch (refused) {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    said.textContent = document.execCommand("copy") ? "copied" : "the browser does not allow it";
    area.remove();
  }
});
