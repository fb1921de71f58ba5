// The attention of the decoder to its inputs: heat over a picture, over the time of a sound, over the words of a text.
'use strict';
const Attention = (() => {
  const values = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const heat = name => getComputedStyle(document.documentElement).getPropertyValue(name).split(',').map(Number);

  // Values as colour of a canvas with a pixel each, which the browser enlarges smoothly; null clears it.
  function paint(canvas, cells, columns, rows, colour) {
    canvas.width = columns;
    canvas.height = rows;
    if (!cells) return;
    const context = canvas.getContext('2d'), image = context.createImageData(columns, rows), [red, green, blue] = heat(colour);
    for (let i = 0; i < columns * rows; i++) image.data.set([red, green, blue, Math.round(0.8 * (cells[i] || 0))], 4 * i);
    context.putImageData(image, 0, 0);
  }

  // targets: {image: canvas, audio: canvas, text: [elements of words]}
  function show(attention, targets, word) {
    const of = modality => word === null ? null : values(attention[modality].values[word]);
    if (attention.image && targets.image) paint(targets.image, of('image'), attention.image.columns, attention.image.rows, '--heat');
    if (attention.audio && targets.audio) paint(targets.audio, of('audio'), values(attention.audio.values[0]).length, 1, '--cold');
    if (attention.text && targets.text) {
      const cells = of('text');
      targets.text.forEach((span, i) => { span.style.background = cells ? `rgba(${heat('--heat').join()}, ${(0.75 * cells[i] / 255).toFixed(2)})` : ''; });
    }
  }

  const NAMES = {image: 'picture', audio: 'sound', text: 'text'};
  const shares = (attention, word) => Object.keys(NAMES).filter(name => attention[name] && attention[name].shares)
    .map(name => `${NAMES[name]} ${Math.round(100 * attention[name].shares[word])} %`).join(', ');

  // A line of buttons, one for each word: pointing at a button or focusing it shows its heat, pressing it keeps the heat.
  function line(attention, targets, make) {
    const readout = make('small', {}, ''), words = make('p', {class: 'attention', 'aria-label': 'attention'});
    let pressed = null;
    const buttons = attention.words.map((text, i) => {
      const button = make('button', {type: 'button', 'aria-pressed': 'false'}, text);
      const on = () => { show(attention, targets, i); readout.textContent = shares(attention, i); };
      const off = () => { show(attention, targets, pressed); readout.textContent = pressed === null ? '' : shares(attention, pressed); };
      for (const name of ['pointerenter', 'focus']) button.addEventListener(name, on);
      for (const name of ['pointerleave', 'blur']) button.addEventListener(name, off);
      button.addEventListener('click', () => {
        pressed = pressed === i ? null : i;
        buttons.forEach((other, j) => other.setAttribute('aria-pressed', String(j === pressed)));
        on();
      });
      return button;
    });
    const modalities = Object.keys(NAMES).filter(name => attention[name]).map(name => NAMES[name]).join(' and ');
    words.append(make('small', {}, `attention to the ${modalities}: `), ...buttons, ' ', readout);
    return words;
  }

  return {line};
})();
