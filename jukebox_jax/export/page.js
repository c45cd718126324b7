"use strict";
// A deck is a card with several versions of the same seconds of music. All of them run together, and all but the chosen
// one are silent, so that a switch is a crossfade of a few milliseconds and never a gap.
document.documentElement.classList.add("js");
const FADE_SECONDS = 0.006;
const LEAD_SECONDS = 0.03; // between a click and its sound: all sources must be ready by then
let context = null; // made with the first sound: browsers allow none before somebody acts
let active = null;

function clock(whole) {
  return Math.floor(whole / 60) + ":" + String(whole % 60).padStart(2, "0");
}

// The sound of an <audio> element. Decoders that do not remove the encoder's delay leave more samples than there were.
async function decoded(audio, seconds) {
  const text = atob(audio.src.slice(audio.src.indexOf(",") + 1));
  const bytes = Uint8Array.from(text, letter => letter.charCodeAt(0));
  const buffer = await context.decodeAudioData(bytes.buffer);
  const late = Number(audio.dataset.delay) || 0;
  return { buffer, lead: buffer.duration > seconds + late / 2 ? late : 0 };
}

function makeDeck(root) {
  const seconds = Number(root.dataset.seconds);
  const audios = Array.from(root.querySelectorAll("audio"));
  const views = Array.from(root.querySelectorAll(".version"));
  const buttons = Array.from(root.querySelectorAll(".versions button"));
  const heads = Array.from(root.querySelectorAll(".playhead"));
  const words = Array.from(root.querySelectorAll(".word"));
  const play = root.querySelector(".play");
  const slider = root.querySelector("input");
  const output = root.querySelector(".clock");
  const total = clock(Math.round(seconds));
  let chosen = Math.max(0, buttons.findIndex(button => button.getAttribute("aria-pressed") === "true"));
  let position = 0;
  let sounds = null; // of all versions, decoded once
  let running = null; // { started, from, sources, gains } while it plays
  let wanted = false; // it should play, also while it is still being decoded

  const now = () => running ? Math.max(running.from, running.from + context.currentTime - running.started) : position;

  function draw() {
    root.classList.toggle("playing", wanted);
    play.setAttribute("aria-label", wanted ? "Pause" : "Play");
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    views.forEach((view, i) => view.classList.toggle("chosen", i === chosen));
    heads.forEach(head => { head.style.left = 100 * position / seconds + "%"; });
    slider.value = position;
    const at = clock(Math.floor(position));
    slider.setAttribute("aria-valuetext", at + " of " + total);
    output.textContent = at + " / " + total;
    words.forEach(word => {
      const sung = position >= Number(word.dataset.start) && position < Number(word.dataset.end);
      if (sung && !word.classList.contains("sung")) reveal(word);
      word.classList.toggle("sung", sung);
    });
  }

  // Scrolls the lyrics alone, never the page.
  function reveal(word) {
    const box = word.closest(".lyrics");
    const from = box.getBoundingClientRect(), to = word.getBoundingClientRect();
    if (to.top < from.top || to.bottom > from.bottom) box.scrollTop += to.top - from.top - from.height / 2;
  }

  function follow() {
    if (!running) return;
    position = Math.min(now(), seconds);
    if (position >= seconds) {
      stop();
      position = 0;
      draw();
      return;
    }
    draw();
    requestAnimationFrame(follow);
  }

  function stop() {
    wanted = false;
    if (!running) return;
    const ended = running, at = context.currentTime;
    running = null;
    // Faded, since a waveform that is cut clicks.
    ended.gains.forEach(gain => { gain.gain.cancelScheduledValues(at); gain.gain.setTargetAtTime(0, at, FADE_SECONDS / 3); });
    ended.sources.forEach(source => source.stop(at + 4 * FADE_SECONDS));
  }

  async function start() {
    wanted = true;
    decks.forEach(deck => { if (deck !== self) deck.pause(); });
    draw();
    try {
      context = context || new AudioContext();
      if (context.state !== "running") await context.resume();
      sounds = sounds || await Promise.all(audios.map(audio => decoded(audio, seconds)));
    } catch (problem) {
      wanted = false;
      draw();
      warn("This browser cannot play the audio: " + problem.message);
      return;
    }
    if (!wanted || running) return; // somebody has thought better of it meanwhile
    const started = context.currentTime + LEAD_SECONDS;
    const gains = sounds.map((sound, i) => new GainNode(context, { gain: i === chosen ? 1 : 0 }));
    const sources = sounds.map((sound, i) => {
      const source = new AudioBufferSourceNode(context, { buffer: sound.buffer });
      source.connect(gains[i]).connect(context.destination);
      source.start(started, sound.lead + position);
      return source;
    });
    running = { started, from: position, sources, gains };
    requestAnimationFrame(follow);
  }

  function pause() {
    position = Math.min(now(), seconds);
    stop();
    draw();
  }

  function warn(text) {
    const line = document.createElement("p");
    line.className = "warning";
    line.setAttribute("role", "alert");
    line.textContent = text;
    root.append(line);
  }

  function seek(time) {
    const resume = wanted;
    stop();
    position = Math.min(Math.max(time, 0), seconds - 0.001);
    draw();
    if (resume) start();
  }

  function choose(index) {
    if (index < 0 || index >= buttons.length || index === chosen) return;
    if (running) {
      const at = context.currentTime;
      for (const [gain, to] of [[running.gains[chosen].gain, 0], [running.gains[index].gain, 1]]) {
        gain.cancelScheduledValues(at);
        gain.setValueAtTime(1 - to, at);
        gain.linearRampToValueAtTime(to, at + FADE_SECONDS);
      }
    }
    chosen = index;
    draw();
  }

  const toggle = () => { if (wanted) pause(); else start(); };

  audios.forEach(audio => { audio.controls = false; });
  play.addEventListener("click", toggle);
  buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
  words.forEach((word, i) => {
    word.addEventListener("click", () => seek(Number(word.dataset.start)));
    word.addEventListener("focus", () => words.forEach(other => { other.tabIndex = other === word ? 0 : -1; }));
    word.addEventListener("keydown", event => {
      const way = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!way) return;
      event.preventDefault();
      event.stopPropagation(); // elsewhere arrows move in time
      words[i + way]?.focus();
    });
  });
  views.forEach((view, i) => {
    const picture = view.querySelector(".picture");
    picture.addEventListener("click", event => {
      const box = picture.getBoundingClientRect();
      choose(i);
      seek(seconds * (event.clientX - box.left) / box.width);
    });
  });
  slider.addEventListener("input", () => seek(Number(slider.value)));
  slider.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!way) return;
    event.preventDefault(); // The slider's own step is a hundredth of a second, for the mouse.
    event.stopPropagation();
    seek(now() + way);
  });

  const self = {
    root, play, toggle, pause, choose,
    chooseKey: key => choose(buttons.findIndex(button => button.dataset.key === key)),
    move: way => seek(now() + way),
    sounding: () => running !== null,
  };
  for (const kind of ["pointerdown", "focusin"]) root.addEventListener(kind, () => { active = self; });
  draw();
  return self;
}

const decks = Array.from(document.querySelectorAll(".deck"), makeDeck);
active = decks[0];

function go(way) {
  const next = decks[decks.indexOf(active) + way];
  if (!next) return;
  active = next;
  next.play.focus({ preventScroll: true });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  next.root.scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}

document.addEventListener("keydown", event => {
  if (!active || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === "p") active.toggle();
  else if (key === "n") go(1);
  else if (key === "b") go(-1);
  else if (key === "arrowleft" || key === "arrowright") active.move(key === "arrowleft" ? -1 : 1);
  else return active.chooseKey(key);
  event.preventDefault();
});
