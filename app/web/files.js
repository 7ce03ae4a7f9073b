// Files that the page hands out.

export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(href), 1000); // not at once: the browser reads it after the click
}

export const saveJson = (value, name) => save(new Blob([JSON.stringify(value)], { type: "application/json" }), name);

export const stem = (name) => name.replace(/\.[^.]*$/, "");
