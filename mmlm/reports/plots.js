// Curves: shows values under the pointer, and redraws the SVG of the page for logarithmic axes.
'use strict';
(() => {
  const plots = JSON.parse(document.getElementById('plots').textContent);
  const make = (name, attributes, parent) => {
    const node = document.createElementNS(parent.namespaceURI, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return parent.appendChild(node);
  };
  const format = value => Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));

  class Plot {
    constructor(figure, lines) {
      this.lines = lines;
      this.svg = figure.querySelector('svg');
      this.groups = [...this.svg.querySelectorAll('g')];
      this.names = [...figure.querySelectorAll('.legend span')].map(span => span.textContent.replace('● ', ''));
      [this.left, , this.wide, this.high] = this.svg.getAttribute('viewBox').split(' ').map(Number);
      this.width = this.wide - 62;
      this.height = this.high - 34;
      const steps = lines.flat().map(point => point[0]), ends = [...this.svg.querySelectorAll('text:not(.y)')];
      const shown = ends.map(text => parseFloat(text.textContent.replaceAll(',', '')));
      this.first = shown.length ? shown[0] : Math.min(...steps);
      this.last = shown.length > 1 ? shown[shown.length - 1] : this.first;
      this.readout = figure.querySelector('figcaption').appendChild(document.createElement('small'));
      this.readout.className = 'readout';
      this.svg.addEventListener('pointermove', event => this.point(event));
      this.svg.addEventListener('pointerleave', () => this.leave());
    }

    x(step) { return (step - this.first) / (this.last - this.first || 1) * this.width; }

    // Plots with values of 0 or less stay linear.
    draw(logarithmic) {
      const values = this.lines.flat().map(point => point[1]);
      const log = logarithmic && Math.min(...values) > 0, scale = log ? Math.log : Number;
      const low = scale(Math.min(...values)), high = scale(Math.max(...values));
      const y = value => (high - scale(value)) / (high - low || 1) * this.height;
      this.lines.forEach((points, i) => {
        const places = points.map(([step, value]) => [this.x(step).toFixed(1), y(value).toFixed(1)]);
        this.groups[i].querySelector('polyline').setAttribute('points', places.map(place => place.join()).join(' '));
        this.groups[i].querySelectorAll('circle').forEach((circle, j) => circle.setAttribute('cy', places[j][1]));
      });
      const middle = log ? Math.exp((low + high) / 2) : (low + high) / 2, texts = [...this.svg.querySelectorAll('text.y')];
      if (texts.length === 3) texts[1].textContent = format(middle);
    }

    point(event) {
      const box = this.svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * this.wide + this.left;
      const nearest = points => points.reduce((a, b) => Math.abs(this.x(b[0]) - x) < Math.abs(this.x(a[0]) - x) ? b : a);
      const points = this.lines.map(nearest);
      const step = points.reduce((a, b) => Math.abs(this.x(b[0]) - x) < Math.abs(this.x(a[0]) - x) ? b : a)[0];
      this.line = this.line || make('line', {class: 'pointer', y1: 0, y2: this.height}, this.svg);
      this.line.setAttribute('x1', this.x(step));
      this.line.setAttribute('x2', this.x(step));
      this.line.style.display = '';
      this.readout.textContent = ` at ${format(step)}: ` + points.map((point, i) => `${this.names[i]} ${format(point[1])}`).join(', ');
    }

    leave() {
      this.readout.textContent = '';
      if (this.line) this.line.style.display = 'none';
    }
  }

  const drawn = [...document.querySelectorAll('figure[data-plot]')].map(figure => new Plot(figure, plots[figure.dataset.plot]));
  const box = document.getElementById('logarithmic');
  if (box) box.addEventListener('change', () => drawn.forEach(plot => plot.draw(box.checked)));
})();
