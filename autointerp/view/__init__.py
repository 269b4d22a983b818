"""The explorer: a run as a folder of static files, which a browser opens without a server or a network.

    index.html        the page, with its style and scripts inside; of a small run also all its data
    data/index.js     a row a feature, in columns: what the table shows, sorts and filters
    data/texts.js     the explanations of all features, which are searched
    data/sNNNNN.js    all that is known of some features, 16 or more

A page opened from a disk (`file://`) may neither fetch nor start workers, but it may load scripts. So data lie in
scripts that hold nothing but base64 of gzip of JSON. Corpus text is inside that, and reaches the page only as text.

    packed     JSON -> base64           columns    arrays of the index
    windows    windows and trials       feature    what is known of one feature
    controls   what a feature's scores are set against
    card       the run in numbers       page       index.html          folder    the whole
"""
