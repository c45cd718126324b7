"use strict";
// A deck is a card with several versions of the same seconds of music. Its position is one number for all of them.
document.documentElement.classList.add("js");
const audios = Array.from(document.querySelectorAll("audio"));
const decks = Array.from(document.querySelectorAll(".deck"), makeDeck);
let active = decks[0];

function clock(whole) {
  return Math.floor(whole / 60) + ":" + String(whole % 60).padStart(2, "0");
}

function makeDeck(root) {
  const seconds = Number(root.dataset.seconds);
  const players = Array.from(root.querySelectorAll("audio"));
  const views = Array.from(root.querySelectorAll(".version"));
  const buttons = Array.from(root.querySelectorAll(".versions button"));
  const heads = Array.from(root.querySelectorAll(".playhead"));
  const play = root.querySelector(".play");
  const slider = root.querySelector("input");
  const output = root.querySelector(".clock");
  let chosen = Math.max(0, buttons.findIndex(button => button.getAttribute("aria-pressed") === "true"));
  let position = 0;
  const total = clock(Math.round(seconds));

  const playing = () => !players[chosen].paused;

  function draw() {
    root.classList.toggle("playing", playing());
    play.setAttribute("aria-label", playing() ? "Pause" : "Play");
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    views.forEach((view, i) => view.classList.toggle("chosen", i === chosen));
    heads.forEach(head => { head.style.left = 100 * position / seconds + "%"; });
    slider.value = position;
    const now = clock(Math.floor(position));
    slider.setAttribute("aria-valuetext", now + " of " + total);
    output.textContent = now + " / " + total;
  }

  function follow() {
    if (!playing()) return;
    position = Math.min(players[chosen].currentTime, seconds);
    draw();
    requestAnimationFrame(follow);
  }

  function start() {
    players[chosen].currentTime = position;
    players[chosen].play().catch(problem => {
      if (problem.name === "AbortError") return; // A pause that came before the first sound.
      const warning = document.createElement("p");
      warning.className = "warning";
      warning.textContent = "This browser cannot play the audio: " + problem.message;
      root.append(warning);
    });
  }

  function seek(time) {
    position = Math.min(Math.max(time, 0), seconds);
    players[chosen].currentTime = position;
    draw();
  }

  function choose(index) {
    if (index < 0 || index === chosen) return;
    const resume = playing();
    if (resume) position = players[chosen].currentTime;
    players[chosen].pause();
    chosen = index;
    if (resume) start();
    draw();
  }

  const toggle = () => { if (playing()) players[chosen].pause(); else start(); };

  players.forEach((player, i) => {
    player.controls = false;
    player.addEventListener("play", () => requestAnimationFrame(follow));
    player.addEventListener("pause", draw);
    player.addEventListener("ended", () => { if (i === chosen) { position = 0; draw(); } });
  });
  play.addEventListener("click", toggle);
  buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
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
    seek(position + way);
  });

  const deck = { toggle, chooseKey: key => choose(buttons.findIndex(button => button.dataset.key === key)) };
  for (const kind of ["pointerdown", "focusin"]) root.addEventListener(kind, () => { active = deck; });
  draw();
  return deck;
}

// One sound at a time, on the whole page.
document.addEventListener("play", event => {
  for (const audio of audios) if (audio !== event.target) audio.pause();
}, true);

document.addEventListener("keydown", event => {
  if (!active || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "p" || event.key === "P") active.toggle();
  else active.chooseKey(event.key.toLowerCase());
});
