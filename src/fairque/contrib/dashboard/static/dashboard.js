// Times in the viewer's zone, and pages that change while they are open. Without it, all else works the same.
"use strict";

const STYLES = {
  full: { day: "2-digit", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" },
  time: { hour: "2-digit", minute: "2-digit", second: "2-digit" },
  hour: { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" },
};
const formats = Object.fromEntries(
  Object.entries(STYLES).map(([name, style]) => [name, new Intl.DateTimeFormat(undefined, { ...style, hourCycle: "h23" })]),
);

function localize(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.valueOf())) time.textContent = formats[time.dataset.style].format(moment);
  }
}

// What is there is changed instead of replaced: bars move, what is focused stays so, and what is open stays open.

function isSame(one, other) {
  return one.nodeType === other.nodeType && one.nodeName === other.nodeName
    && (one.nodeType !== Node.ELEMENT_NODE || one.dataset.key === other.dataset.key);
}

function change(old, now) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== now.data) old.data = now.data;
    return;
  }
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) {
    if (!now.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  changeChildren(old, now);
}

function changeChildren(old, now) {
  const keyed = new Map();
  for (const child of old.children) if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
  let at = old.firstChild;
  for (const wanted of [...now.childNodes]) {
    const known = wanted.nodeType === Node.ELEMENT_NODE && wanted.dataset.key !== undefined && keyed.get(wanted.dataset.key);
    if (known && known !== at) old.insertBefore(known, at);
    const found = known || (at !== null && isSame(at, wanted) ? at : null);
    if (found === null) {
      old.insertBefore(wanted, at);
    } else {
      change(found, wanted);
      at = found.nextSibling;
    }
  }
  while (at !== null) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function show(parts) {
  for (const [id, html] of Object.entries(parts)) {
    const element = document.getElementById(id);
    if (element === null) continue;
    const now = document.createElement(element.nodeName);
    if (id === "trouble") now.textContent = html;
    else now.innerHTML = html;
    localize(now);
    changeChildren(element, now);
  }
}

// A stream is open while the page can be seen, and is not held.

function follow(address, pulse) {
  let stream = null;
  let held = false;

  function tell(state, text) {
    pulse.dataset.state = state;
    pulse.textContent = text;
  }

  function close() {
    if (stream !== null) stream.close();
    stream = null;
  }

  function open() {
    close();
    if (held || document.hidden) return;
    stream = new EventSource(address);
    stream.addEventListener("open", () => tell("live", "Live"));
    stream.addEventListener("parts", (event) => show(JSON.parse(event.data)));
    stream.addEventListener("end", () => {
      close();
      tell("lost", "Not live: reload");
    });
    stream.addEventListener("error", () => {
      if (stream !== null && stream.readyState === EventSource.CLOSED) tell("lost", "Not live: reload");
      else tell("lost", "Connecting…");
    });
  }

  pulse.hidden = false;
  pulse.addEventListener("click", () => {
    held = pulse.dataset.state === "live";
    if (held) {
      close();
      tell("held", "Held: go on");
    } else {
      tell("lost", "Connecting…");
      open();
    }
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  open();
}

localize(document);
const pulse = document.getElementById("pulse");
if (pulse !== null) follow(document.body.dataset.live, pulse);
